"""Epochs of deltas: the same bodies give the same bits everywhere, and nothing else that is sent counts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fedpeft import wire
from fedpeft.codecs import Codec, Context, ErrorFeedback, Fragments, Identity, PublicSupport, Ternary, Uniform
from fedpeft.errors import Defect, PayloadError, RunError
from fedpeft.federation import Plan, ServerOptimizer, broadcast
from fedpeft.peers.delta import DeltaLedger
from fedpeft.peers.delta_work import DeltaWork
from fedpeft.space import Slot, Space
from fedpeft.strategies import Context as Merging
from fedpeft.strategies import Fisher, Krum, Update
from fedpeft.training import Settings
from tests.peers.learning import RUN, Pull, examples, point
from tests.strategies.examples import EXAMPLES, SPACE

SETTINGS = Settings(local_steps=2, learning_rate=0.3)


def ledger(start: torch.Tensor | None = None, run: bytes = RUN, space: Space = SPACE, **plan: object) -> DeltaLedger:
    known = {"rounds": 5, "seed": 3, "settings": SETTINGS, "codec": Ternary(0.5)} | plan
    return DeltaLedger(Plan(**known), space, torch.zeros(space.numel) if start is None else start, run)


def body(given: DeltaLedger, epoch: int, peer: int, delta: torch.Tensor | None = None, count: int = 8) -> bytes:
    delta = point(peer) if delta is None else delta
    return given.seal(delta, torch.zeros_like(delta), count, given.context(epoch, peer))[0]


def decoded(codec: Codec, delta: torch.Tensor, ctx: Context) -> torch.Tensor:
    return codec.decode(codec.encode(delta, SPACE, ctx), SPACE, ctx)


FREE = [
    strategy
    for strategy in (example.strategy for example in EXAMPLES)
    if not (strategy.needs or strategy.scores or strategy.offline or strategy.rooted)
]


@pytest.mark.parametrize("strategy", FREE, ids=repr)
def test_an_epoch_is_the_merge_of_what_its_members_sent(strategy):
    one, codec = ledger(start=point(9), strategy=strategy), Ternary(0.5)
    bodies = {peer: [body(one, 4, peer, count=peer)] for peer in range(1, 8)}
    updates = [Update(decoded(codec, point(peer), one.context(4, peer)), float(peer)) for peer in range(1, 8)]
    merged = strategy.merge(updates, Merging(SPACE, point(9), 3, 4))
    after = one.fold(one.beginning(), 4, bodies)
    torch.testing.assert_close(one.adapter(after), point(9) + merged, rtol=1e-5, atol=1e-5)
    backwards = dict(reversed(bodies.items()))
    assert ledger(start=point(9), strategy=strategy).fold(one.beginning(), 4, backwards) == after


def test_the_state_is_the_adapter_in_float32():
    start = ledger(start=point(1))
    assert start.beginning() == point(1).numpy().astype("<f4").tobytes()
    assert torch.equal(start.adapter(start.beginning()), point(1))
    assert start.fold(start.beginning(), 1, {}) == start.beginning()
    assert len(start.beginning()) == start.most_bytes


@pytest.mark.parametrize("outer", ["SGD(lr=0.7, momentum=0.9, nesterov=True)", "Adam(lr=0.1)"])
def test_the_outer_optimizer_goes_on_from_the_state(outer):
    optimizer = ServerOptimizer(outer)
    one, adapter, kept = ledger(codec=Identity(), optimizer=optimizer), torch.zeros(SPACE.numel), {}
    state = one.beginning()
    for epoch in range(1, 4):
        state = one.fold(state, epoch, {peer: [body(one, epoch, peer)] for peer in (1, 2)})
        adapter, kept = optimizer.step(adapter, (point(1) + point(2)) / 2, kept)
        assert torch.equal(one.adapter(state), adapter)
    assert len(state) == one.most_bytes > len(one.beginning())


def test_the_segments_of_a_member_add_up():
    one = ledger(codec=Identity())
    state = one.fold(one.beginning(), 1, {1: [body(one, 1, 1, point(k)) for k in (1, 2)], 2: [body(one, 1, 2)]})
    torch.testing.assert_close(one.adapter(state), (point(1) + point(2) + point(2)) / 2)


def test_what_was_made_for_another_place_counts_nowhere():
    one = ledger()
    elsewhere = {1: [body(one, 2, 1)], 2: [body(one, 1, 1)]}
    for peer in elsewhere:
        one.check(elsewhere[peer][0])
    assert one.fold(one.beginning(), 1, elsewhere) == one.beginning()
    alone = {3: [body(one, 1, 3)]}
    assert one.fold(one.beginning(), 1, elsewhere | alone) == one.fold(one.beginning(), 1, alone)


def test_a_step_that_cannot_be_made_is_left_out():
    few = ledger(strategy=Krum(1))
    assert few.fold(few.beginning(), 1, {1: [body(few, 1, 1)]}) == few.beginning()
    nowhere = ledger(codec=Identity(), optimizer=ServerOptimizer("Adam(lr=0.1, eps=0.0)"))
    assert nowhere.fold(nowhere.beginning(), 1, {1: [body(nowhere, 1, 1, torch.zeros(SPACE.numel))]}) == (
        nowhere.beginning()
    )


def alone(coordinate: int, length: float) -> torch.Tensor:
    delta = torch.zeros(SPACE.numel)
    delta[coordinate] = length
    return delta


@pytest.mark.parametrize("weight", [8, 10**7])
def test_who_goes_to_the_edge_of_all_numbers_stops_nobody(weight):
    wide = ledger(codec=Identity(), largest_norm=9_990.0)
    state = wide.beginning()
    for epoch in range(1, 41):
        bodies = {
            1: [body(wide, epoch, 1, alone(0, 9_990.0), weight)] * 4,
            **{peer: [body(wide, epoch, peer, alone(peer, 1.0))] for peer in (2, 3, 4)},
        }
        before, state = wide.adapter(state), wide.fold(state, epoch, bodies)
        assert (wide.adapter(state)[2:5] > before[2:5]).all(), "theirs count in every epoch"
    assert wide.adapter(state)[0] == broadcast.LARGEST
    after = wide.fold(state, 41, {peer: [body(wide, 41, peer, alone(0, -9_990.0))] for peer in (2, 3, 4)})
    assert wide.adapter(after)[0] < broadcast.LARGEST - 9_000


@pytest.mark.parametrize("codec", [Identity(), Ternary(0.5), Uniform()], ids=repr)
@pytest.mark.parametrize("segments", [2, 4, 64])
def test_more_segments_go_no_further_than_one(codec, segments):
    one = ledger(codec=codec, largest_norm=3.0)
    same = body(one, 1, 1, 100 * point(1))
    one.check(same)
    came = one.adapter(one.fold(one.beginning(), 1, {1: [same] * segments}))
    assert float(came.norm()) == pytest.approx(3.0, rel=1e-5)
    short = body(one, 1, 1, alone(5, 0.01))
    held = one.adapter(one.fold(one.beginning(), 1, {1: [short] * 2}))
    assert float(held.norm()) < 1, "and what is short is left as it is"


@pytest.mark.parametrize(
    "codec", [Identity(), Ternary(0.5), Uniform(), ErrorFeedback(Ternary(0.2, scale="norm"))], ids=repr
)
@pytest.mark.parametrize("length", [0.9, 1.0, 1.001, 30.0, 1e4])
def test_an_honest_delta_that_is_too_long_is_shortened_and_not_refused(codec, length):
    one = ledger(codec=codec, largest_norm=10.0)
    delta, carried = length * 10 / point(1).norm() * point(1), point(2) / 100
    whole, residual = one.seal(delta, carried, 8, one.context(1, 1))
    one.check(whole)
    came = one.adapter(one.fold(one.beginning(), 1, {1: [whole]}))
    assert torch.cosine_similarity(came, delta, dim=0) > 0.5 and came.norm() > 0.5 * min(10, float(delta.norm()))
    assert residual.norm() < 11


def broken(**how: object) -> bytes:
    return body(ledger(**how), 1, 1)


@pytest.mark.parametrize(
    ("said", "defect"),
    [
        (b"", Defect.TOO_LARGE),
        (bytes(100_000), Defect.TOO_LARGE),
        (broken(run=bytes(32)), Defect.RUN),
        (broken(codec=Ternary(0.25)), Defect.CODEC),
        (broken(codec=Uniform(bits=2)), Defect.CODEC),
        (bytes(4) + broken()[4:], Defect.WEIGHT),
        (b"\xff\xff\xff\xff" + broken()[4:], Defect.WEIGHT),
        (body(ledger(largest_norm=1e9), 1, 1, 1e5 * point(1)), Defect.NORM),
    ],
)
def test_a_body_that_breaks_a_rule_is_refused(said, defect):
    with pytest.raises(PayloadError) as caught:
        ledger().check(said)
    assert caught.value.defect == defect


def test_a_body_of_another_adapter_or_of_infinity_is_refused():
    other = Space((*SPACE.slots[1:], Slot("other", SPACE.slots[0].shape, "lora_A")), SPACE.config)
    with pytest.raises(PayloadError, match="fingerprint"):
        ledger().check(body(ledger(space=other), 1, 1))
    plain = ledger(codec=Identity())
    whole = body(plain, 1, 1)
    header, _ = wire.inspect(whole[4:])
    parts = dict(Identity().encode(point(1), SPACE, plain.context(1, 1)))
    values = next(iter(parts.values())).values
    values[0] = float("inf")
    with pytest.raises(PayloadError) as caught:
        plain.check(whole[:4] + wire.pack(header, parts))
    assert caught.value.defect == Defect.NON_FINITE


@given(some.data())
def test_damage_is_refused_or_shows_in_the_weight_alone(data):
    one = ledger()
    whole = body(one, 1, 1)
    cut = data.draw(some.integers(0, len(whole) - 1))
    with pytest.raises(PayloadError):
        one.check(whole[:cut])
    place = data.draw(some.integers(4, len(whole) - 1))
    with pytest.raises(PayloadError):
        one.check(whole[:place] + bytes([whole[place] ^ 1 << data.draw(some.integers(0, 7))]) + whole[place + 1 :])


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"strategy": Fisher()}, "fisher"),
        ({"codec": PublicSupport(elect="last")}, "server's"),
        ({"cohort": 2}, "cohort"),
        ({"buffer": 2}, "buffer"),
        ({"codec": Fragments(Uniform(), 2), "optimizer": ServerOptimizer("SGD(lr=1.0, momentum=0.9)")}, "SGD"),
    ],
)
def test_what_takes_a_server_is_refused(plan, why):
    with pytest.raises(ValueError, match=why):
        ledger(**plan)


def work(given: DeltaLedger, member: int, path: Path | None = None) -> DeltaWork:
    return DeltaWork(given, Pull(), examples(member), path)


def test_members_that_train_come_to_the_mean_of_their_points():
    one = ledger(rounds=40, codec=ErrorFeedback(Ternary(0.5)), settings=replace(SETTINGS, learning_rate=0.1))
    workers = {peer: work(one, peer) for peer in range(1, 5)}
    state, wanted = one.beginning(), torch.stack([point(peer) for peer in workers]).mean(dim=0)
    for epoch in range(1, 41):
        bodies = {peer: [worker.segment(state, epoch, peer, 1)] for peer, worker in workers.items()}
        for each in bodies.values():
            one.check(each[0])
        state = one.fold(state, epoch, bodies)
    assert torch.linalg.vector_norm(one.adapter(state) - wanted) < 0.2 * torch.linalg.vector_norm(wanted)


def test_a_segment_that_is_asked_for_again_is_the_same():
    one = ledger(codec=ErrorFeedback(Ternary(0.5)))
    worker = work(one, 1)
    first = worker.segment(one.beginning(), 1, 1, 1)
    assert worker.segment(one.beginning(), 1, 1, 1) == first
    assert worker.segment(one.beginning(), 1, 1, 2) != first


def test_what_was_lost_is_sent_later_also_after_a_restart(tmp_path):
    one = ledger(codec=ErrorFeedback(Ternary(0.5)))
    through, restarted, forgetful = work(one, 1), work(one, 1, tmp_path / "residual"), work(one, 1)
    first = through.segment(one.beginning(), 1, 1, 1)
    assert restarted.segment(one.beginning(), 1, 1, 1) == first
    forgetful.segment(one.beginning(), 1, 1, 1)
    restarted, forgetful = work(one, 1, tmp_path / "residual"), work(one, 1)
    second = through.segment(one.beginning(), 2, 1, 1)
    assert restarted.segment(one.beginning(), 2, 1, 1) == second
    assert forgetful.segment(one.beginning(), 2, 1, 1) != second


def test_a_damaged_residual_is_only_a_lost_one(tmp_path):
    one, path = ledger(codec=ErrorFeedback(Ternary(0.5))), tmp_path / "residual"
    work(one, 1, path).segment(one.beginning(), 1, 1, 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert work(one, 1, path).segment(one.beginning(), 2, 1, 1) == work(one, 1).segment(one.beginning(), 2, 1, 1)


def test_training_that_diverges_says_so():
    one = ledger(settings=Settings(local_steps=200, learning_rate=50.0))
    with pytest.raises(RunError, match="lower the learning rate"):
        work(one, 1).segment(one.beginning(), 1, 1, 1)
