"""SRHT and Ferret: what is lost, against theory; what is sent, against a few lines of numpy and of torch."""

import math

import numpy as np
import pytest
import torch

from fedpeft.codecs import SRHT, Context, ErrorFeedback, Ferret, Numbers, Symbols, ferret
from fedpeft.errors import Defect, PayloadError
from fedpeft.random import philox_torch
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, all_bits, normal, there_and_back, without_type_checks
from tests.kernels.test_hadamard import DEVICES, by_torch
from tests.kernels.test_rademacher import directions

LINE = Space((Slot("a", (3000,), "lora_A"),))
PROJECTIONS = [SRHT, Ferret]
both = pytest.mark.parametrize("kind", PROJECTIONS)


def blocks_of(d, block):
    """Edges of blocks that halve at the end."""
    sizes = [block] * (d // block) + [1 << bit for bit in range(40, -1, -1) if (d % block) >> bit & 1]
    return [0, *np.cumsum(sizes).tolist()]


class OnDevice:
    """The transform from integer operations, additions and powers of two of torch: any device makes the same bits."""

    def __init__(self, d, k, block, stream, device):
        def words(start, n):
            return philox_torch(stream.key, (stream.round, stream.client, int(stream.purpose)), start, n, device)

        strata = torch.arange(k + 1, device=device) * d // k
        low, high = words(0, 2 * k).view(k, 2).unbind(1)
        self.widths = strata.diff()
        self.rows = strata[:-1] + (low >> 1 | high << 31) % self.widths
        bits = words(2 * k, -(-d // 32))[:, None] >> torch.arange(32, device=device) & 1
        self.signs = 1 - 2 * bits.view(-1)[:d].float()
        self.edges = blocks_of(d, block)
        exponents = [(end - begin).bit_length() - 1 for begin, end in zip(self.edges, self.edges[1:], strict=False)]
        self.half = torch.cat([torch.full((1 << e,), 2.0 ** -(e // 2), device=device) for e in exponents])
        self.rest = torch.cat([torch.full((1 << e,), 2.0 ** -(e - e // 2), device=device) for e in exponents])

    def transform(self, x):
        return torch.cat([by_torch(x[a:b]) for a, b in zip(self.edges, self.edges[1:], strict=False)])

    def project(self, x):
        return (self.transform(x * self.signs) * self.half)[self.rows]

    def combine(self, y):
        z = torch.zeros_like(self.signs)
        z[self.rows] = y
        return self.transform(z * self.rest) * self.signs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("k", "block"), [(1, 16), (100, 1 << 16), (777, 64), (LARGE.numel, 256), (40, 1)])
@pytest.mark.parametrize("scale", ["mean", "unbiased"])
@pytest.mark.parametrize("run", [False, True])
def test_srht_is_the_same_on_any_device_to_the_last_bit(device, k, block, scale, run):
    codec = SRHT(k, scale=scale, block=block, directions="run" if run else "round")
    stream = Context(CONTEXT.seed, 0 if run else CONTEXT.round, part=CONTEXT.part).shared
    there = OnDevice(LARGE.numel, k, block, stream, device)
    x = normal(LARGE)
    parts = codec.encode(x, LARGE, CONTEXT)
    y = there.project(x.to(device))
    assert y.cpu().numpy().tobytes() == parts["product"].values.tobytes()
    back = there.combine(y if scale == "mean" else y * there.widths).cpu()
    assert torch.equal(codec.decode(parts, LARGE, CONTEXT), back)


@pytest.mark.parametrize(("k", "block"), [(1, 5000), (9, 999), (500, 100), (LINE.numel, 32)])
@pytest.mark.parametrize("scale", ["mean", "unbiased"])
def test_ferret_is_its_equations(k, block, scale):
    codec, x = Ferret(k, scale=scale, block=block), normal(LINE)
    parts = codec.encode(x, LINE, CONTEXT)
    blocks = min(k, -(-LINE.numel // block))
    expected, sent, used = np.zeros(LINE.numel), [], 0
    for b in range(blocks):
        begin, end = b * LINE.numel // blocks, (b + 1) * LINE.numel // blocks
        n, count = end - begin, (b + 1) * k // blocks - b * k // blocks
        v = directions(CONTEXT.shared.words(count * -(-n // 32), used), n)
        used += count * -(-n // 32)
        y = v @ x[begin:end].double().numpy() / math.sqrt(n)
        s = 1 if scale == "unbiased" else count / (count + n - 1)
        expected[begin:end] = s * math.sqrt(n) / count * (y @ v)
        sent.extend(y)
    assert n <= block or blocks == k
    assert np.allclose(parts["product"].values, sent, rtol=1e-5, atol=1e-5)
    assert np.allclose(codec.decode(parts, LINE, CONTEXT).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_directions_drawn_in_pieces_are_the_same(monkeypatch):
    x, codec = normal(LINE), Ferret(50, block=1000)
    parts = codec.encode(x, LINE, CONTEXT)
    whole = codec.decode(parts, LINE, CONTEXT)
    monkeypatch.setattr(ferret, "_WORDS", 70)
    assert all_bits(codec.encode(x, LINE, CONTEXT)) == all_bits(parts)
    assert torch.allclose(codec.decode(parts, LINE, CONTEXT), whole, rtol=0, atol=1e-5)
    monkeypatch.setattr(ferret, "_ALL_WORDS", 1000)
    with pytest.raises(ValueError, match=r"50 directions of 1000 signs are too many; take a smaller block"):
        codec.encode(x, LINE, CONTEXT)


def lost(codec, x, space=LINE, rounds=60):
    """The mean of ||x - x^||^2 / ||x||^2 over rounds."""
    each = [(there_and_back(codec, x, space, Context(1, r, 1)) - x).norm() ** 2 for r in range(1, rounds + 1)]
    return float(torch.stack(each).mean() / x.norm() ** 2)


def ferret_theory(x, codec):
    """What Ferret loses on average: a block of n numbers with k directions has (n - 1) / k, or a part of it."""
    total, k = 0.0, round(codec.density * x.numel())
    blocks = min(k, -(-x.numel() // codec.block))
    for b in range(blocks):
        part = x[b * x.numel() // blocks : (b + 1) * x.numel() // blocks]
        n, count = part.numel(), (b + 1) * k // blocks - b * k // blocks
        total += float(part @ part) * (n - 1) / (count if codec.scale == "unbiased" else count + n - 1)
    return total / float(x @ x)


@pytest.mark.parametrize("share", [0.02, 0.125, 0.5])
@pytest.mark.parametrize("block", [128, 2048])
@pytest.mark.parametrize("power", [1, 5])
def test_what_is_lost_is_what_theory_says(share, block, power):
    x = normal(LINE) ** power
    energies = np.array([float(part @ part) for part in x.split(block)])
    products = 60 * share * block * energies.sum() ** 2 / (energies**2).sum()
    close = 4 * math.sqrt(2 / products)
    nearest, unbiased = (SRHT(density=share, scale=scale, block=block) for scale in ("mean", "unbiased"))
    assert math.isclose(lost(nearest, x), 1 - share, abs_tol=close * share)
    assert math.isclose(lost(unbiased, x), 1 / share - 1, rel_tol=close + 0.01)
    nearest, unbiased = (Ferret(density=share, scale=scale, block=block) for scale in ("mean", "unbiased"))
    assert math.isclose(lost(nearest, x), ferret_theory(x, nearest), abs_tol=2 * close * share)
    assert math.isclose(lost(unbiased, x), ferret_theory(x, unbiased), rel_tol=close + 0.01)
    assert lost(SRHT(density=share, block=block), x) < lost(nearest, x) + close * share


@both
def test_bytes_for_numbers_cost_next_to_nothing(kind):
    x = normal(LINE)
    whole, half, byte = (
        lost(kind(density=0.25, dtype=dtype), x, rounds=20) for dtype in ("float32", "float16", "logbyte")
    )
    assert abs(half - whole) < 1e-5 and abs(byte - whole) < 1e-3


@both
@pytest.mark.parametrize("scale", ["mean", "unbiased"])
@pytest.mark.parametrize("over", ["round", "run"])
def test_one_decoding_makes_the_mean_of_all_sites(kind, scale, over):
    codec, sites = kind(density=0.1, scale=scale, directions=over), 9
    sent = [codec.encode(normal(LARGE, i), LARGE, Context(5, 3, i)) for i in range(sites)]
    apart = sum(codec.decode(parts, LARGE, Context(5, 3, i)) for i, parts in enumerate(sent)) / sites
    summed = sum(parts["product"].values for parts in sent) / np.float32(sites)
    at_once = codec.decode({"product": Numbers(summed)}, LARGE, Context(5, 3, 0))
    assert torch.allclose(at_once, apart, rtol=0, atol=2e-6 * float(apart.abs().max()))


def test_the_nearest_vector_is_a_projection():
    x = normal(LINE)
    once = there_and_back(SRHT(density=0.3), x, LINE)
    twice = there_and_back(SRHT(density=0.3), once, LINE)
    assert (twice - once).norm() < 1e-6 * once.norm()
    assert abs(float((x - once) @ once)) < 1e-5 * float(x.norm() * once.norm())


@pytest.mark.parametrize("block", [1, 2, 64, 1 << 16])
def test_all_rows_are_the_delta_itself(block):
    for x in (normal(LARGE), normal(LARGE) * 1e-30, normal(LARGE) * 1e30):
        y = there_and_back(SRHT(density=1.0, block=block), x, LARGE)
        assert (y.double() - x.double()).norm() < 1e-6 * x.double().norm()
    assert torch.equal(there_and_back(SRHT(10**9, block=block), x, LARGE), y), "there are no more than d"


@both
def test_rounds_and_runs(kind):
    x, others = normal(LINE), [Context(5, 4, 2), Context(5, 3, 7), Context(6, 3, 2), Context(5, 3, 2, part=1)]
    a, b = (there_and_back(kind(50, directions=over), x, LINE, CONTEXT) for over in ("round", "run"))
    assert not torch.equal(a, b)
    assert [torch.equal(there_and_back(kind(50), x, LINE, ctx), a) for ctx in others] == [False, True, False, False]
    run = kind(50, directions="run")
    assert [torch.equal(there_and_back(run, x, LINE, ctx), b) for ctx in others] == [True, True, False, False]


@both
def test_new_directions_bring_everything_through_and_old_ones_do_not(kind):
    x = normal(LINE)
    for over, through in (("round", True), ("run", False)):
        feedback, residual, total = ErrorFeedback(kind(density=0.2, directions=over)), torch.zeros(LINE.numel), 0
        for number in range(1, 61):
            parts, residual = feedback.encode(x, residual, LINE, Context(5, number, 2))
            total = total + feedback.codec.decode(parts, LINE, Context(5, number, 2))
        assert bool((total / 60 - x).norm() < 0.2 * x.norm()) == through


def test_a_coordinate_leaks_over_its_whole_block():
    x = torch.zeros(LINE.numel)
    x[100] = 1.0
    y = there_and_back(SRHT(density=0.1, block=1024), x, LINE)
    rest = torch.cat([y[:100], y[101:1024]])
    assert not y[1024:].any()
    assert math.isclose(y[100], 0.1, rel_tol=0.05) and rest.abs().max() < 5 * rest.square().mean().sqrt()


@both
@pytest.mark.parametrize("count", [1, 3, 7, 200])
def test_a_space_of_many_blocks_and_few_directions(kind, count):
    codec, x = kind(count, block=32), normal(LINE)
    assert codec.layout(LINE)["product"].numel == count
    seen = torch.stack([there_and_back(codec, x, LINE, Context(1, r)) for r in range(30)])
    assert (seen != 0).any(0).sum() > min(LINE.numel, 30 * 16 * count) * 0.5


HUGE = np.finfo(np.float32).max


@both
@pytest.mark.parametrize(
    ("dtype", "parts"),
    [
        ("float32", {"product": Numbers(np.full(20, HUGE))}),
        ("float32", {"product": Numbers(np.eye(20, dtype=np.float32)[3] * HUGE)}),
        (
            "float16",
            {"product": Numbers(np.full(20, 65504, np.float16)), "scale": Numbers(np.array([1e35], np.float32))},
        ),
        ("float16", {"product": Numbers(np.ones(20, np.float16)), "scale": Numbers(np.array([-HUGE]))}),
        ("logbyte", {"product": Symbols(np.full(20, 254, np.uint8), 255), "scale": Numbers(np.array([HUGE]))}),
    ],
)
def test_products_that_sum_to_infinity_are_refused(kind, dtype, parts):
    with pytest.raises(PayloadError, match="20 products of .* may sum to infinity") as caught:
        kind(20, dtype=dtype).decode(parts, LINE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


@both
@pytest.mark.parametrize("dtype", ["float32", "float16", "logbyte"])
def test_a_delta_beyond_what_can_be_summed_is_refused_by_its_sender(kind, dtype):
    with pytest.raises(ValueError, match=r"products with directions are too large for float32; the delta's norm is"):
        kind(density=0.5, dtype=dtype).encode(torch.full((LINE.numel,), 3e38), LINE, CONTEXT)


@both
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either coordinates or density, got None and None"),
        ({"coordinates": 3, "density": 0.1}, "give either coordinates or density, got 3 and 0.1"),
        ({"coordinates": 0}, "coordinates must be an integer of at least 1, got 0"),
        ({"coordinates": True}, "coordinates must be an integer of at least 1, got True"),
        ({"coordinates": 2.0}, "coordinates must be an integer of at least 1, got 2.0"),
        ({"density": 0.0}, r"density must lie in \(0, 1\], got 0.0"),
        ({"density": float("nan")}, r"density must lie in \(0, 1\], got nan"),
        ({"density": 0.1, "scale": "norm"}, "scale must be one of mean, unbiased, got 'norm'"),
        ({"density": 0.1, "dtype": "bfloat16"}, "dtype must be one of float32, float16, logbyte, got 'bfloat16'"),
        ({"density": 0.1, "directions": "day"}, "directions must be one of round, run, got 'day'"),
        ({"density": 0.1, "block": 0}, "block must be .*, got 0"),
        ({"density": 0.1, "block": 8.0}, "block must be .*, got 8.0"),
    ],
)
@without_type_checks()
def test_wrong_settings_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_a_block_that_no_hadamard_matrix_has():
    with pytest.raises(ValueError, match="block must be a power of two, got 48"):
        SRHT(4, block=48)
