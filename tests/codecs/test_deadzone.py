"""DeadZone: the rate that was asked for, the least error at it, the scale rules, and what a hostile peer can send."""

import numpy as np
import pytest
import torch

from fedpeft import wire
from fedpeft.codecs import DeadZone, Numbers, Symbols, Ternary, Uniform
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, SPACE, header, normal, there_and_back, without_type_checks

BIG = Space((Slot("a", (20, 3000), "lora_A"), Slot("b", (3000, 20), "lora_B")))
RATES = [0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0]
DRAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "student": lambda rng, n: rng.standard_t(3, size=n),
    "two scales": lambda rng, n: rng.standard_normal(n) * np.repeat([1.0, 0.25], n // 2),
}


def drawn(name, space=BIG):
    return torch.from_numpy(DRAWS[name](np.random.default_rng(1), space.numel).astype(np.float32))


def sent_bits(codec, x, space):
    """Bits a parameter of all parts and tables, as they go over the wire."""
    payload = wire.pack(header(codec, space), codec.encode(x, space, CONTEXT))
    return 8 * sum(part.payload_bytes for part in wire.inspect(payload)[1]) / space.numel


def loss(codec, x, space=BIG):
    return float((there_and_back(codec, x, space) - x).norm() / x.norm())


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("step", ["global", "slot"])
@pytest.mark.parametrize("name", DRAWS)
def test_the_wire_takes_as_many_bits_as_are_asked_for(bits, step, name):
    sent = sent_bits(DeadZone(bits, step=step), drawn(name), BIG)
    if name == "student" and bits == 6:  # whose tail 255 codes do not reach: the least error takes fewer bits
        assert 3.5 < sent < bits
    else:
        assert sent == pytest.approx(bits, rel=0.02)


@pytest.mark.parametrize(("bits", "error"), [(1.0, 0.592), (2.0, 0.3), (3.0, 0.1495), (4.0, 0.0748), (6.0, 0.0188)])
def test_the_error_is_close_to_shannons_bound_for_normal_numbers(bits, error):
    """The bound is 2^-bits; no scalar quantiser comes closer than 0.254 bits at high rates."""
    assert loss(DeadZone(bits, "mean"), drawn("normal")) == pytest.approx(error, rel=0.01)
    assert 2**-bits < error < 2 ** -(bits - 0.27)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("bits", [3, 4, 5])
def test_it_loses_less_than_steps_from_the_largest_at_the_same_bits(name, bits):
    x, other = drawn(name), Uniform(bits)
    rate = sent_bits(other, x, BIG)
    if rate > 0.5:
        assert loss(DeadZone(rate, "mean"), x) < 1.003 * loss(other, x)


def test_where_the_codes_do_not_reach_the_tail_no_rate_below_loses_less():
    x = drawn("student")
    losses = [loss(DeadZone(bits, "mean"), x) for bits in (2.0, 3.0, 3.5, 4.0, 5.0, 6.0)]
    assert losses[-1] <= 1.001 * min(losses)


def test_at_low_rates_it_is_as_good_as_a_ternary_code():
    x = drawn("normal")
    for density in (0.02, 0.1, 0.2):
        ternary = Ternary(density, "mean", "global")
        assert loss(DeadZone(sent_bits(ternary, x, BIG), "mean"), x) == pytest.approx(loss(ternary, x), rel=0.005)


@pytest.mark.parametrize("step", ["global", "slot"])
@pytest.mark.parametrize("bits", [0.3, 2.0])
def test_the_scale_rules_hold(step, bits):
    x = drawn("two scales")
    for rule in ("norm", "mean", "unbiased"):
        y = there_and_back(DeadZone(bits, rule, step), x, BIG)
        groups = [(x, y)] if step == "global" else [(BIG.view(x, s), BIG.view(y, s)) for s in "ab"]
        for a, b in groups:
            a, b = a.double().flatten(), b.double().flatten()
            want, got = {"norm": (a @ a, b @ b), "mean": (b @ b, a @ b), "unbiased": (a @ a, a @ b)}[rule]
            assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_a_step_a_slot_gives_all_slots_the_same_error():
    x = drawn("normal")
    BIG.view(x, "b").mul_(1e-3)
    y = there_and_back(DeadZone(2.0, "mean", "slot"), x, BIG)
    for name in "ab":
        a = BIG.view(x, name)
        assert float((BIG.view(y, name) - a).norm() / a.norm()) == pytest.approx(0.30, rel=0.02)
    assert not BIG.view(there_and_back(DeadZone(2.0), x, BIG), "b").any()


@pytest.mark.parametrize("half", [1, 2, 3])
@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0])
def test_few_different_numbers_take_no_more_bits_unless_the_largest_alone_do(half, bits):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(-half, half + 1, BIG.numel).astype(np.float32))
    codec = DeadZone(bits)
    only_the_largest = torch.equal(there_and_back(codec, x, BIG) != 0, x.abs() == half)
    assert sent_bits(codec, x, BIG) <= 1.02 * bits or only_the_largest


@pytest.mark.parametrize("name", ["equal", "one", "least of all"])
@pytest.mark.parametrize("step", ["global", "slot"])
def test_what_needs_one_point_is_exact(name, step):
    x = torch.full((SPACE.numel,), 2.0**-100) if name == "least of all" else DELTAS[name](SPACE)
    for scale in ("norm", "mean", "unbiased"):
        assert torch.allclose(there_and_back(DeadZone(1.0, scale, step), x), x, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [0.1, 2.0, 6.0])
def test_the_largest_is_never_lost_however_low_the_rate_and_long_the_tail(bits):
    x = normal(LARGE) * 1e-6
    x[5] = 1.0
    y = there_and_back(DeadZone(bits, "mean"), x, LARGE)
    assert float(y[5]) == pytest.approx(1.0, rel=0.02)


def test_numbers_up_to_the_end_of_float32_come_back_finite():
    x = normal(SPACE)
    x *= torch.finfo(torch.float32).max / x.abs().max()
    for rule in ("norm", "mean", "unbiased"):
        for bits in (0.1, 1.0, 6.0):
            y = there_and_back(DeadZone(bits, rule), x)
            assert torch.isfinite(y).all() and y.any()


def hostile(**changed):
    parts = dict(DeadZone(2.0).encode(normal(SPACE), SPACE, CONTEXT))
    return parts | {name: Numbers(np.array(values, np.float32)) for name, values in changed.items()}


@pytest.mark.parametrize("changed", [{"step": [3e38]}, {"step": [-3e38]}, {"shift": [3e38, 3e38, 0]}])
def test_a_step_beyond_float32_is_refused(changed):
    with pytest.raises(PayloadError, match="steps of the largest are not finite") as caught:
        DeadZone(2.0).decode(hostile(**changed) | {"step": Numbers(np.array([3e38], np.float32))}, SPACE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


def test_whatever_an_admissible_payload_says_is_a_delta_or_refused():
    rng, codec = np.random.default_rng(0), DeadZone(0.5, step="slot")
    levels, limit = codec.layout(SPACE)["code"].levels, np.finfo(np.float32).max
    seen = set()
    for _ in range(200):
        numbers = np.array([-limit, -1, 0, 1e-45, 1, limit / 40, limit], np.float32)
        parts = {
            "step": Numbers(rng.choice(numbers, len(SPACE.slots))),
            "shift": Numbers(rng.choice(numbers, 3, p=[0.05, 0.2, 0.3, 0.1, 0.2, 0.1, 0.05])),
            "code": Symbols(rng.integers(0, levels, SPACE.numel, np.uint8), levels),
        }
        try:
            assert torch.isfinite(codec.decode(parts, SPACE, CONTEXT)).all()
            seen.add("a delta")
        except PayloadError as error:
            seen.add(error.defect)
    assert seen <= {"a delta", Defect.NON_FINITE} and Defect.NON_FINITE in seen


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeadZone(0.05), r"bits must lie in \[0.1, 6\], got 0.05"),
        (lambda: DeadZone(6.5), r"bits must lie in \[0.1, 6\], got 6.5"),
        (lambda: DeadZone(float("nan")), r"bits must lie in \[0.1, 6\], got nan"),
        (lambda: DeadZone(True), r"bits must lie in \[0.1, 6\], got True"),
        (lambda: DeadZone(scale="max"), "scale must be 'mean', 'norm' or 'unbiased', got 'max'"),
        (lambda: DeadZone(step="row"), "step must be 'global' or 'slot', got 'row'"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
