"""What TopK keeps, and what it makes of the values."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.codecs import ErrorFeedback, Numbers, Plane, Symbols, TopK
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, SPACE, normal, there_and_back, without_type_checks

ONE_SLOT = Space((Slot("a", (3, 2000), "lora_A"),))


def kept(parts, space):
    return np.unpackbits(parts["mask"].bits, bitorder="little")[: space.numel].astype(bool)


def kept_by_sorting(x, density, chunk):
    """The largest of each chunk by a stable sort: of equal magnitudes the first, and no zeros."""
    mask = np.zeros(x.size, bool)
    for begin in range(0, x.size, chunk or x.size or 1):
        part = np.abs(x[begin : begin + (chunk or x.size)])
        mask[begin + np.argsort(-part, kind="stable")[: max(1, round(density * part.size))]] = True
    return mask & (x != 0)


@pytest.mark.parametrize("density", [1e-9, 0.01, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("chunk", [1, 7, 64, 4096, None])
@pytest.mark.parametrize("name", ["normal", "integers", "equal", "one", "zero", "denormal", "huge"])
def test_exactly_the_largest_of_each_chunk_are_kept(density, chunk, name):
    for space in (SPACE, LARGE):
        x = DELTAS[name](space)
        mask = kept(TopK(density, chunk=chunk).encode(x, space, CONTEXT), space)
        for begin, end in pairwise(space.bounds):
            assert np.array_equal(mask[begin:end], kept_by_sorting(x.numpy()[begin:end], density, chunk))


@pytest.mark.parametrize("chunk", [20_000, None])
def test_chunks_that_no_cache_holds_are_selected_too(chunk):
    space = Space((Slot("a", (50_000,), "head"),))
    for x in (normal(space), (normal(space) * 3).round()):
        mask = kept(TopK(0.03, chunk=chunk).encode(x, space, CONTEXT), space)
        assert np.array_equal(mask, kept_by_sorting(x.numpy(), 0.03, chunk))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_values_are_rounded_to_the_nearest_of_the_fitted_levels(bits):
    x = normal(LARGE)
    codec = TopK(0.2, bits)
    parts, y = codec.encode(x, LARGE, CONTEXT), there_and_back(codec, x, LARGE)
    mask, levels = kept(parts, LARGE), parts["level"].values
    assert levels.size == 1 << (bits - 1) and np.all(np.diff(levels) >= 0) and levels[0] > 0
    assert not y[~torch.from_numpy(mask)].any() and torch.equal(y.sign()[mask], x.sign()[mask])
    for j, (begin, end) in enumerate(pairwise(LARGE.bounds)):
        inside = mask[begin:end]
        unit = np.float32(2.0 ** (-int(parts["scale"].values[j]) / 8))
        a, b = np.abs(x.numpy()[begin:end][inside]), np.abs(y.numpy()[begin:end][inside])
        error = np.abs(a[:, None] - levels[None] * unit).min(axis=1, initial=np.inf)
        assert np.allclose(np.abs(a - b), error, rtol=1e-3, atol=1e-6 * a.max(initial=0))


@pytest.mark.parametrize("seed", range(5))
def test_two_levels_are_the_best_two(seed):
    """Against every way to cut the sorted magnitudes in two."""
    x = normal(ONE_SLOT, seed)
    mask = kept(TopK(0.1).encode(x, ONE_SLOT, CONTEXT), ONE_SLOT)
    values = np.sort(np.abs(x.numpy()[mask]).astype(np.float64))
    best = min(
        sum(float(((part - part.mean()) ** 2).sum()) for part in (values[:i], values[i:]))
        for i in range(1, values.size)
    )
    y = there_and_back(TopK(0.1), x, ONE_SLOT)
    assert best <= float(((x - y)[mask].double() ** 2).sum()) <= 1.01 * best


def test_more_bits_and_larger_chunks_lose_less():
    x = normal(ONE_SLOT)
    losses = [float((x - there_and_back(TopK(0.1, bits), x, ONE_SLOT)).norm()) for bits in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True)
    losses = [float((x - there_and_back(TopK(0.1, 4, chunk), x, ONE_SLOT)).norm()) for chunk in (10, 500, None)]
    assert losses == sorted(losses, reverse=True)


def test_slots_of_other_magnitudes_share_the_table_and_not_the_scale():
    space = Space((Slot("a", (400,), "x"), Slot("b", (400,), "x"), Slot("c", (400,), "x")))
    x = normal(Space((Slot("a", (400,), "x"),))).repeat(3)
    x[400:800] *= 2.0**-20
    x[800:] *= 2.0**-40
    parts, y = TopK(0.1).encode(x, space, CONTEXT), there_and_back(TopK(0.1), x, space)
    assert parts["scale"].values.tolist() == [0, 160, 255]
    assert torch.equal(y[400:800], y[:400] * 2.0**-20) and not y[800:].any()
    assert kept(parts, space).reshape(3, 400).sum(axis=1).tolist() == [40, 40, 0]


def test_the_residual_stays_bounded_and_every_coordinate_comes_through():
    x, residual, total = normal(LARGE), torch.zeros(LARGE.numel), torch.zeros(LARGE.numel)
    feedback = ErrorFeedback(TopK(0.05, chunk=256))
    for _ in range(200):
        parts, residual = feedback.encode(x, residual, LARGE, CONTEXT)
        total += feedback.codec.decode(parts, LARGE, CONTEXT)
    assert (total / 200 - x).norm() < 0.15 * x.norm()
    assert residual.norm() < 30 * x.norm()


@pytest.mark.parametrize("count", [-1, 1, 8])
def test_values_that_do_not_fit_the_mask(count):
    parts = dict(TopK(0.3).encode(normal(SPACE), SPACE, CONTEXT))
    n = parts["value"].values.size
    parts["value"] = Symbols(np.zeros(n + count, np.uint8), 4)
    with pytest.raises(PayloadError, match=rf"keeps {n} coordinates, but {n + count} values came") as caught:
        TopK(0.3).decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.COUNT


def test_whatever_an_admissible_payload_says_is_a_delta():
    rng, codec = np.random.default_rng(0), TopK(0.5)
    limit = np.finfo(np.float32).max
    for _ in range(50):
        mask = np.packbits(rng.random(SPACE.numel) < 0.2, bitorder="little")
        n = int(np.bitwise_count(mask).sum())
        parts = {
            "level": Numbers(rng.choice(np.array([-limit, 0, 1e-45, limit], np.float32), 2)),
            "scale": Symbols(rng.integers(0, 256, len(SPACE.slots), np.uint8), 256),
            "mask": Plane(mask, SPACE.numel),
            "value": Symbols(rng.integers(0, 4, n, np.uint8), 4),
        }
        assert torch.isfinite(codec.decode(parts, SPACE, CONTEXT)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(density=0), r"density must lie in \(0, 1\], got 0"),
        (lambda: TopK(density=float("nan")), r"density must lie in \(0, 1\], got nan"),
        (lambda: TopK(bits=0), "bits must be 1, 2, 3 or 4, got 0"),
        (lambda: TopK(bits=2.0), "bits must be 1, 2, 3 or 4, got 2.0"),
        (lambda: TopK(bits=True), "bits must be 1, 2, 3 or 4, got True"),
        (lambda: TopK(chunk=0), "chunk must be at least 1, got 0"),
        (lambda: TopK(chunk=4096.0), "chunk must be a whole number or None, got 4096.0"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
