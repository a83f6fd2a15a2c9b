"""Scalars of a byte: exact sums in any order, directions that nobody chooses, bodies that are checked."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import Defect, PayloadError
from fedpeft.peers import ladder
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.scalar import ScalarLedger, directions_seed

K, PER = 64, 16
CODES = st.integers(0, 255).filter(lambda code: code != 128)
BODIES = st.lists(CODES, min_size=1, max_size=PER).map(bytes)
EPOCH = st.dictionaries(st.integers(1, 5), st.lists(BODIES, max_size=4), max_size=5)
ALL = np.array([code for code in range(256) if code != 128], np.uint8)


def ledger(**settings) -> ScalarLedger:
    return ScalarLedger(torch.linspace(-1, 1, 1000), seed=3, count=K, per_segment=PER, **settings)


LEDGER = ledger()


# The ladder


def test_levels_rise_and_are_what_the_bits_say():
    levels = ladder.LEVELS[:128].tolist()
    assert levels[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] and levels[16] == 16 and levels[127] == 245_760
    assert all(a < b for a, b in pairwise(levels))
    assert all(b / a <= 9 / 8 for a, b in pairwise(levels[8:]))
    assert np.array_equal(ladder.LEVELS[128:], -ladder.LEVELS[:128])


@pytest.mark.parametrize("random", [None, np.zeros(255, np.uint32), np.full(255, 0xFFFFFFFF, np.uint32)])
def test_a_level_is_its_own_code(random):
    assert np.array_equal(ladder.encode(ladder.LEVELS[ALL].astype(np.float64), words=random), ALL)


@given(st.floats(-3e5, 3e5), st.integers(1, 127))
def test_the_nearest_level_is_taken(value, largest):
    allowed = [level for level in ladder.LEVELS.tolist() if abs(level) <= ladder.LEVELS[largest]]
    got = ladder.LEVELS[ladder.encode(np.array([value]), largest)[0]]
    assert got in allowed and abs(got - value) == min(abs(level - value) for level in allowed)


@given(st.floats(-3e5, 3e5), st.integers(1, 127), st.integers(0, 2**32 - 1))
def test_random_rounding_takes_a_level_beside(value, largest, word):
    most = float(ladder.LEVELS[largest])
    got = ladder.LEVELS[ladder.encode(np.array([value]), largest, np.array([word], np.uint32))[0]]
    clipped = min(max(value, -most), most)
    beside = [level for level in ladder.LEVELS.tolist() if abs(level) <= most]
    low, high = max(x for x in beside if x <= clipped), min(x for x in beside if x >= clipped)
    assert got in (low, high)


def test_random_rounding_has_the_value_as_its_mean():
    draw = np.random.default_rng(0)
    for value in (0.25, -3.3, 8.75, -100.0, 77_777.0, 245_759.0):
        levels = ladder.LEVELS[
            ladder.encode(np.full(40_000, value), words=draw.integers(0, 1 << 32, 40_000, np.uint32))
        ]
        assert abs(levels.mean() - value) < 5 * levels.std() / 200


# The ledger


def test_it_is_a_ledger():
    kept: Ledger = LEDGER
    assert kept.most_body == PER
    assert len(LEDGER.beginning()) == LEDGER.most_bytes == 8 * K
    assert torch.equal(LEDGER.adapter(LEDGER.beginning()), LEDGER.base)


@given(EPOCH, st.permutations(range(5)))
def test_a_fold_knows_no_order_and_its_parts_make_the_whole(bodies, order):
    state = LEDGER.fold(LEDGER.beginning(), 1, {1: [bytes([99])]})
    whole = LEDGER.fold(state, 2, bodies)
    for peer in order:
        state = LEDGER.fold(state, 2, {peer + 1: bodies.get(peer + 1, [])})
    assert state == whole


@given(EPOCH)
def test_a_fold_is_a_sum_over_places(bodies):
    sums = [0] * K
    for peer, theirs in bodies.items():
        for number, body in enumerate(theirs, 1):
            for direction, code in zip(LEDGER.directions(3, peer, number).tolist(), body, strict=False):
                sums[direction] += int(ladder.LEVELS[code])
    state = LEDGER.fold(LEDGER.beginning(), 3, bodies)
    assert state == b"".join(total.to_bytes(8, "little", signed=True) for total in sums)
    again = LEDGER.fold(state, 3, {peer: [_negated(body) for body in theirs] for peer, theirs in bodies.items()})
    assert again == LEDGER.beginning()


def _negated(body):
    return bytes(code and code ^ 128 for code in body)


def test_sums_are_exact_beyond_what_floats_hold():
    one = ScalarLedger(torch.zeros(4), seed=0, count=1, per_segment=65536)
    state = (2**60 + 1).to_bytes(8, "little", signed=True)
    state = one.fold(state, 1, {1: [bytes([127]) * 65536] * 10, 2: [bytes([1])]})
    assert int.from_bytes(state, "little", signed=True) == 2**60 + 2 + 245_760 * 655_360


def test_an_adapter_is_the_base_and_each_step():
    bodies = {1: [bytes([100, 3, 250]), bytes(range(16))], 4: [bytes([40] * 16)]}
    by_steps = LEDGER.base.double()
    for peer, theirs in bodies.items():
        for number, body in enumerate(theirs, 1):
            steps = LEDGER.decode(body)
            for direction, step in zip(LEDGER.directions(1, peer, number).tolist(), steps.tolist(), strict=False):
                by_steps += step * LEDGER.direction(direction).double()
    adapter = LEDGER.adapter(LEDGER.fold(LEDGER.beginning(), 1, bodies))
    assert torch.allclose(adapter.double(), by_steps, rtol=0, atol=1e-5)
    assert not torch.equal(adapter, LEDGER.base)


def test_steps_come_back_as_published():
    steps = np.array([0.0, 1.0, -1.0, 1e-9, 1e9, -1e9])
    came = ledger(unit=2.0**-10, largest=90).decode(ledger(unit=2.0**-10, largest=90).encode(steps))
    assert came.tolist() == [0.0, 1.0, -1.0, 0.0, *(sign * ladder.LEVELS[90] / 1024 for sign in (1, -1))]


# Whose direction


def test_a_place_has_one_direction_and_nobody_chooses_it():
    first = LEDGER.directions(1, 2, 3)
    assert first.shape == (PER,) and first.min() >= 0 and first.max() < K
    assert np.array_equal(ledger(unit=1.0, largest=5).directions(1, 2, 3), first), "what a peer sets does not count"
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(LEDGER.directions(*other), first)
    other_run = ScalarLedger(LEDGER.base, seed=4, count=K, per_segment=PER)
    assert not np.array_equal(other_run.directions(1, 2, 3), first)


def test_two_runs_share_no_directions_although_both_have_seed_0():
    runs = [bytes([number]) * 32 for number in (1, 2)]
    assert directions_seed(runs[0], 0) == directions_seed(runs[0], 0) != directions_seed(runs[0], 1)
    one, other = (ScalarLedger(LEDGER.base, directions_seed(run, 0), K, per_segment=PER) for run in runs)
    assert not np.array_equal(one.directions(1, 1, 1), other.directions(1, 1, 1))
    assert not any(torch.equal(one.direction(i), other.direction(i)) for i in range(K))


def test_all_directions_come_up_alike():
    drawn = np.concatenate([LEDGER.directions(1, peer, number) for peer in range(1, 41) for number in range(1, 101)])
    counts = np.bincount(drawn, minlength=K)
    assert abs(counts - drawn.size / K).max() < 5 * np.sqrt(drawn.size / K)


def test_a_short_segment_leaves_its_places_out():
    short, full = bytes([9, 9]), bytes([9] * PER)
    both = LEDGER.fold(LEDGER.beginning(), 1, {1: [short, full]})
    apart = LEDGER.fold(LEDGER.fold(LEDGER.beginning(), 1, {1: [short]}), 1, {1: [bytes(PER), full]})
    assert both == apart


# What is refused


@given(st.binary(max_size=PER + 3), st.integers(1, 127))
def test_a_body_is_right_or_refused(body, largest):
    checking = ledger(largest=largest)
    right = 1 <= len(body) <= PER and all(code != 128 and code % 128 <= largest for code in body)
    if right:
        checking.check(body)
    else:
        with pytest.raises(PayloadError):
            checking.check(body)


@pytest.mark.parametrize(
    ("body", "defect"),
    [(b"", Defect.EMPTY), (bytes(PER + 1), Defect.TOO_LARGE), (b"\x05\x80", Defect.SYMBOL), (b"\x7f", Defect.SYMBOL)],
)
def test_what_is_wrong_is_named(body, defect):
    with pytest.raises(PayloadError) as caught:
        ledger(largest=126).check(body)
    assert caught.value.defect == defect


@pytest.mark.parametrize("size", [0, 8 * K - 1, 8 * K + 8])
def test_a_state_of_another_size_is_refused(size):
    for use in (LEDGER.adapter, lambda state: LEDGER.fold(state, 1, {})):
        with pytest.raises(PayloadError, match=f"expected a state of {8 * K} bytes, got {size}"):
            use(bytes(size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 48}, "count must be a power of two, got 48"),
        ({"count": 2048}, "2048 directions in a space of 1000"),
        ({"largest": 128}, r"largest must lie in \[1, 127\], got 128"),
        ({"unit": 0.0}, r"unit must lie in .* got 0.0"),
        ({"unit": float("nan")}, r"unit must lie in .* got nan"),
        ({"per_segment": 0}, r"per_segment must lie in .* got 0"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ScalarLedger(torch.zeros(1000), seed=0, **settings)
