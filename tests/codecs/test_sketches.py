"""What is decoded in two steps: the second is linear, the same for all who may be summed, and no longer than said."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.codecs import (
    DCT,
    SRHT,
    Clip,
    Context,
    Ferret,
    Fragments,
    Identity,
    Numbers,
    PowerSGD,
    PublicSupport,
    RandomMask,
    Rotated,
    Turns,
    Uniform,
    chain,
    per_slot,
)
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CODECS, CONTEXT, DELTAS, LARGE, SPACE, beyond, every_delta, normal

MORE = [
    Fragments(SRHT(density=0.5), 2),
    Turns(PublicSupport(0.5, Uniform(4, True)), ("lora_B head", "lora_A")),
    chain(Clip(norm=1.0), Ferret(20, dtype="logbyte")),
    PublicSupport(0.5, SRHT(density=0.5)),
    PublicSupport(0.3, Uniform(8, True), rescale=True),
    SRHT(200, scale="unbiased", block=16),
]
SKETCHED = [c for c in CODECS + MORE if c.sketch(SPACE, CONTEXT)]
every_sketch = pytest.mark.parametrize("codec", SKETCHED, ids=repr)
SITES = [replace(CONTEXT, client=client) for client in range(1, 8)]


def test_projections_and_public_supports_are_sketches_and_what_holds_them_as_they_are():
    kinds = {type(codec) for codec in SKETCHED}
    assert kinds == {SRHT, Ferret, PowerSGD, PublicSupport, Fragments, Turns, type(chain(Clip(1.0), Identity()))}
    for codec in CODECS + MORE:
        assert codec in SKETCHED or not isinstance(codec, SRHT | Ferret | PowerSGD | PublicSupport)
    for other in (
        RandomMask(0.3, Identity()),  # each client's own coordinates
        chain(DCT(3), PublicSupport()),
        Fragments(Identity(), 2),
        Rotated(),
        per_slot({"lora_A": SRHT(density=0.5)}, default=Identity()),
    ):
        assert other.sketch(SPACE, CONTEXT) is None


@every_sketch
@every_delta
def test_the_two_steps_are_the_decode(codec, name):
    if beyond(codec, name):
        return
    for ctx in SITES[:2]:
        parts = codec.encode(DELTAS[name](SPACE), SPACE, ctx)
        sketch = codec.sketch(SPACE, ctx)
        values = sketch.values(parts)
        assert values.dtype == np.float32 and values.ndim == 1
        assert torch.equal(sketch.spread(values), codec.decode(parts, SPACE, ctx))


@every_sketch
@pytest.mark.parametrize("space", [SPACE, LARGE], ids=["small", "large"])
def test_a_sum_of_many_sites_is_spread_as_the_sum_of_what_each_is_decoded_to(codec, space):
    weights = np.array([3.0, 1.0, 250.0, 1e-3, 17.0, 4.0, 9.0])
    sketches = [codec.sketch(space, ctx) for ctx in SITES]
    assert len({sketch.key for sketch in sketches}) == 1
    parts = [codec.encode(normal(space, ctx.client), space, ctx) for ctx in SITES]
    each = torch.stack([codec.decode(p, space, ctx) for p, ctx in zip(parts, SITES, strict=True)]).double()
    expected = torch.from_numpy(weights) @ each / weights.sum()
    values = np.stack([sketch.values(p) for sketch, p in zip(sketches, parts, strict=True)]).astype(np.float64)
    for sketch in sketches[::3]:
        found = sketch.spread((weights @ values / weights.sum()).astype(np.float32))
        assert (found - expected).norm() <= 1e-6 * (1 + expected.norm())


@every_sketch
def test_what_is_not_spread_alike_has_another_key(codec):
    key, other = codec.sketch(SPACE, CONTEXT).key, Space(SPACE.slots, "{}")
    for ctx in (replace(CONTEXT, seed=6), replace(CONTEXT, part=1)):
        assert codec.sketch(SPACE, ctx).key != key
    assert codec.sketch(other, CONTEXT).key != key
    assert len({codec.sketch(SPACE, CONTEXT).key for codec in SKETCHED}) == len(set(map(repr, SKETCHED)))
    later = codec.sketch(SPACE, replace(CONTEXT, round=CONTEXT.round + 2)).key
    assert (later == key) == (getattr(codec, "directions", "round") == "run")


def test_coordinates_that_other_adapters_elect_are_not_summed():
    codec, start, before = PublicSupport(0.3, elect="last"), normal(SPACE, 1), normal(SPACE, 2)
    contexts = [replace(CONTEXT, client=i, start=start, before=before) for i in range(3)]
    sketches = [codec.sketch(SPACE, ctx) for ctx in contexts]
    assert len({sketch.key for sketch in sketches}) == 1
    there = codec.decode(codec.encode(normal(SPACE), SPACE, contexts[0]), SPACE, contexts[2])
    elsewhere = replace(CONTEXT, start=start, before=normal(SPACE, 3))
    assert codec.sketch(SPACE, elsewhere).key != sketches[0].key
    assert not torch.equal(there, codec.decode(codec.encode(normal(SPACE), SPACE, elsewhere), SPACE, elsewhere))


@every_sketch
@every_delta
@pytest.mark.parametrize("space", [SPACE, LARGE], ids=["small", "large"])
def test_nothing_is_longer_than_is_said(codec, name, space):
    if beyond(codec, name):
        return
    sketch, parts = codec.sketch(space, CONTEXT), codec.encode(DELTAS[name](space), space, CONTEXT)
    values = sketch.values(parts)
    length = float(torch.linalg.vector_norm(sketch.spread(values), dtype=torch.float64))
    assert length <= sketch.longest(values) and np.isfinite(sketch.longest(values))
    assert (sketch.longest(values) > 0) == bool(values.any())


@pytest.mark.parametrize("kind", [SRHT, Ferret])
@pytest.mark.parametrize("scale", ["mean", "unbiased"])
@pytest.mark.parametrize(("k", "block"), [(1, 16), (7, 64), (300, 32), (3000, 1024)])
def test_the_longest_delta_of_some_products_is_no_longer(kind, scale, k, block):
    """Products that point along the longest delta: what a sender who knows the directions would take."""
    space = Space((Slot("a", (3000,), "lora_A"),))
    codec = kind(k, scale=scale, block=block)
    sketch = codec.sketch(space, CONTEXT)
    y = np.random.default_rng(0).standard_normal(k).astype(np.float32)
    for _ in range(20):
        x = sketch.spread(y)
        y = codec.encode(x / x.norm(), space, CONTEXT)["product"].values
    reached = float(sketch.spread(y).norm()) / sketch.longest(y)
    assert 0.02 < reached <= 1 if kind is Ferret else 0.6 < reached <= 1


def test_what_is_refused_is_refused_before_it_is_summed():
    sketch = SRHT(20).sketch(LARGE, CONTEXT)
    with pytest.raises(PayloadError, match="20 products of .* may sum to infinity") as caught:
        sketch.values({"product": Numbers(np.full(20, np.finfo(np.float32).max))})
    assert caught.value.defect == Defect.NON_FINITE
    scaled = PublicSupport(0.1, rescale=True)
    parts = {"values": Numbers(np.full(scaled.layout(LARGE)["values"].numel, 3e38, np.float32))}
    for read in (scaled.sketch(LARGE, Context()).values, lambda parts: scaled.decode(parts, LARGE, Context())):
        with pytest.raises(PayloadError, match=r"a value over the density 0.1 is not finite"):
            read(parts)
