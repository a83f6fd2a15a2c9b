"""Ranks: the order of start + delta goes over the wire and comes back; and what a hostile peer can send."""

import numpy as np
import pytest
import torch

from fedpeft import ranking, wire
from fedpeft.codecs import DCT, Clip, Context, Numbers, Ranks, chain
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, header, normal, there_and_back

SIZES = {"a": (70_000,), "b": (300,), "c": (256,), "d": ()}
WIDE = Space(tuple(Slot(name, shape, "head") for name, shape in SIZES.items()))


@pytest.mark.parametrize("space", [SPACE, LARGE, WIDE], ids=["small", "large", "wide"])
@pytest.mark.parametrize("anchored", [False, True])
def test_the_ranking_of_the_adapter_arrives(space, anchored):
    start = ranking.scores(normal(space, 1), space) if anchored else torch.zeros(space.numel)
    ctx = Context(5, 3, 2, start=start if anchored else None)
    delta = 0.1 * normal(space, 2)
    came = start + there_and_back(Ranks(), delta, space, ctx)
    assert torch.equal(ranking.ranks(came, space), ranking.ranks(start + delta, space))
    for slot in space.slots:
        if slot.numel:
            sent, got = (space.view(x, slot.name) for x in (start + delta, came))
            assert got.min() == pytest.approx(float(sent.min()), abs=1e-6)
            assert got.max() == pytest.approx(float(sent.max()), abs=1e-6)


def test_a_place_takes_as_few_bytes_as_the_slot_allows():
    layout = Ranks().layout(WIDE)
    assert [layout[f"order.{i}"].dtype for i in range(4)] == ["uint32", "uint16", "uint8", "uint8"]
    parts = Ranks().encode(normal(WIDE), WIDE, CONTEXT)
    payload = wire.pack(header(Ranks(), WIDE), parts)
    assert len(payload) < 4 * 70_000 + 2 * 300 + 257 + 32 + 400


def test_the_start_of_groups_and_behind_a_bound():
    start = normal(SPACE, 3)
    ctx = Context(5, 3, 2, start=start)
    clipped = there_and_back(chain(Clip(1e-3), Ranks()), normal(SPACE), ctx=ctx)
    delta = 1e-3 * normal(SPACE) / normal(SPACE).norm()
    assert torch.equal(ranking.ranks(start + clipped, SPACE), ranking.ranks(start + delta, SPACE))
    with pytest.raises(ValueError, match=r"Ranks\(\) reads the adapter, which DCT\(.* before it does not transform"):
        chain(DCT(), Ranks())


def changed(**parts):
    return {**Ranks().encode(normal(SPACE), SPACE, CONTEXT), **parts}


def test_ends_in_the_wrong_order_or_too_far_are_refused():
    m = sum(slot.numel > 0 for slot in SPACE.slots)
    limit = np.finfo(np.float32).max
    turned = changed(ends=Numbers(np.tile(np.array([1, -1], np.float32), m)))
    with pytest.raises(PayloadError, match="slot 0: its least number 1 is larger than -1") as caught:
        Ranks().decode(turned, SPACE, CONTEXT)
    assert caught.value.defect == Defect.COUNT
    far = changed(ends=Numbers(np.tile(np.array([-limit, limit], np.float32), m)))
    assert torch.isfinite(Ranks().decode(far, SPACE, CONTEXT)).all()
    with pytest.raises(PayloadError, match="beyond float32") as caught:
        Ranks().decode(far, SPACE, Context(start=torch.full((SPACE.numel,), float(limit))))
    assert caught.value.defect == Defect.NON_FINITE


def test_an_adapter_that_is_not_finite_is_refused():
    limit = torch.full((SPACE.numel,), float(np.finfo(np.float32).max))
    with pytest.raises(ValueError, match="is not finite"):
        Ranks().encode(limit, SPACE, Context(start=limit))
