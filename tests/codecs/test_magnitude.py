"""What MagnitudeMask keeps, how often, and what it makes of the values."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context, MagnitudeMask, Numbers, Symbols
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, normal, there_and_back, without_type_checks


def kept(parts, space):
    return np.unpackbits(parts["mask"].bits, bitorder="little")[: space.numel].astype(bool)


def probabilities(x, density, eps):
    """MAGPRUNE's 1 - p_i for each row, by a full sort; eps / (n - 1) for the paper's eps / n."""
    ranks = np.argsort(np.argsort(-np.abs(x), axis=1), axis=1)
    n = x.shape[1]
    drop = (1 - density) - eps / 2 + eps / max(1, n - 1) * (ranks if n > 1 else 0.5)
    return 1 - drop


def distinct(rows, columns):
    """Rows of magnitudes that are all at least 20 % apart, in random order, of random sign."""
    rng = np.random.default_rng(columns)
    magnitudes = 1.2 ** np.stack([rng.permutation(columns) for _ in range(rows)]) * 1e-3
    return (magnitudes * rng.choice([-1, 1], magnitudes.shape)).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 2, 8, 16, 17, 64, 300])
@pytest.mark.parametrize(("density", "eps"), [(0.5, 0.6), (0.1, 0.1), (0.3, 0.0), (0.6, 0.8)])
def test_each_is_kept_where_the_word_lies_below_its_probability(columns, density, eps):
    space = Space((Slot("a", (5, columns), "lora_A"),))
    x = distinct(5, columns)
    codec = MagnitudeMask(density, eps, bits=8)
    parts = codec.encode(torch.from_numpy(x).reshape(-1), space, CONTEXT)
    p = probabilities(x, density, eps)
    expected = CONTEXT.private.words(x.size).reshape(x.shape) * 2.0**-32 < p
    assert np.array_equal(kept(parts, space).reshape(x.shape), expected)
    y = codec.decode(parts, space, CONTEXT).numpy().reshape(x.shape)
    assert np.allclose(y[expected], (x / p)[expected], rtol=0, atol=1.0001 * float(parts["step"].values[0]))


@pytest.mark.parametrize("columns", [12, 200])
def test_kept_as_often_as_the_rank_says(columns):
    space, rounds = Space((Slot("a", (4, columns), "lora_A"),)), 2000
    x = distinct(4, columns)
    codec = MagnitudeMask(0.4, 0.6)
    seen = sum(
        kept(codec.encode(torch.from_numpy(x).reshape(-1), space, Context(1, r)), space).astype(float)
        for r in range(1, rounds + 1)
    )
    p = probabilities(x, 0.4, 0.6).reshape(-1)
    assert np.all(np.abs(seen / rounds - p) < 4.5 * np.sqrt(p * (1 - p) / rounds) + 1e-9)
    assert abs(float(p.mean()) - 0.4) < 1e-12


def test_near_magnitudes_share_their_mean_rank_and_the_mean_density_stays():
    """All magnitudes alike: every one is kept with the mean probability, in short rows and in long ones."""
    for columns in (4, 500):
        space = Space((Slot("a", (4000 // columns, columns), "lora_A"),))
        words = CONTEXT.private.words(space.numel) * 2.0**-32
        parts = MagnitudeMask(0.4, 0.7).encode(torch.full((space.numel,), -0.7), space, CONTEXT)
        assert np.array_equal(kept(parts, space), words < 0.4)


def test_zeros_are_never_kept():
    x = normal(LARGE)
    x[::3] = 0
    x[1::6] = -0.0
    mask = kept(MagnitudeMask(0.9, 0.2).encode(x, LARGE, CONTEXT), LARGE)
    assert not mask[x.numpy() == 0].any() and 0.85 < mask[x.numpy() != 0].mean() < 1


def test_a_row_is_the_last_dimension():
    """Rows of other magnitudes are ranked apart; a slot of one dimension is one row."""
    x = distinct(3, 40)
    scaled = x * np.array([[1], [1e-6], [1e6]], np.float32)
    matrix, row = Space((Slot("a", (3, 40), "lora_A"),)), Space((Slot("a", (120,), "lora_A"),))
    codec = MagnitudeMask(0.5, 0.9)
    a, b = (kept(codec.encode(torch.from_numpy(v).reshape(-1), matrix, CONTEXT), matrix) for v in (x, scaled))
    c = kept(codec.encode(torch.from_numpy(scaled).reshape(-1), row, CONTEXT), row)
    assert np.array_equal(a, b) and not np.array_equal(b, c)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_multiples_of_a_step(bits):
    x = normal(LARGE)
    codec = MagnitudeMask(0.5, 0.5, bits)
    parts, y = codec.encode(x, LARGE, CONTEXT), there_and_back(codec, x, LARGE)
    half = (1 << (bits - 1)) - 1
    for (begin, end), step in zip(pairwise(LARGE.bounds), parts["step"].values, strict=True):
        codes = y[begin:end].double() / max(float(step), 1e-30)
        assert torch.allclose(codes, codes.round(), atol=1e-5) and (codes.abs() <= half + 1e-5).all()


@pytest.mark.parametrize("count", [-1, 1, 8])
def test_values_that_do_not_fit_the_mask(count):
    codec = MagnitudeMask(0.5, 0.5)
    parts = dict(codec.encode(normal(SPACE), SPACE, CONTEXT))
    n = parts["value"].values.size
    parts["value"] = Symbols(np.zeros(n + count, np.uint8), 15)
    with pytest.raises(PayloadError, match=rf"keeps {n} coordinates, but {n + count} values came") as caught:
        codec.decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.COUNT


def test_a_step_beyond_float32_is_refused_at_both_ends():
    codec, limit = MagnitudeMask(0.1, 0.1), np.finfo(np.float32).max
    with pytest.raises(ValueError, match=r"slot 'head.weight' cannot be scaled up by the inverse of the density 0.1"):
        codec.encode(torch.full((LARGE.numel,), float(limit)), LARGE, CONTEXT)
    parts = dict(codec.encode(normal(SPACE), SPACE, CONTEXT))
    parts["step"] = Numbers(np.full(len(SPACE.slots), limit))
    with pytest.raises(PayloadError, match="7 steps of the largest are not finite") as caught:
        codec.decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MagnitudeMask(density=0), r"density must lie in \(0, 1\], got 0"),
        (lambda: MagnitudeMask(density=0.1, eps=0.2), r"eps must leave 0.1 -\+ eps / 2 in \(0, 1\], got 0.2"),
        (lambda: MagnitudeMask(density=0.9, eps=0.3), r"eps must leave 0.9 -\+ eps / 2 in \(0, 1\], got 0.3"),
        (lambda: MagnitudeMask(eps=-0.1), r"eps must leave .* got -0.1"),
        (lambda: MagnitudeMask(eps=float("nan")), r"eps must leave .* got nan"),
        (lambda: MagnitudeMask(bits=9), "bits must be an integer from 2 to 8, got 9"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
