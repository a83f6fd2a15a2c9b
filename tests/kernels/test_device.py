"""Torch's twins of the kernels make the same bits as numba, on whatever device there is.

On a machine with a GPU: python -m pytest tests/kernels/test_device.py -k cuda
"""

from itertools import pairwise
from math import isqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft import kernels
from fedpeft.kernels import device
from fedpeft.kernels.device import rows, sums
from fedpeft.kernels.packing import pack_symbols
from fedpeft.random import Purpose, Stream

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
on_every_device = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=needs_cuda)])
FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 1e-45, -1e-45, 3.4028235e38])
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
STREAM = Stream(7, Purpose.CODEC_PRIVATE, 3, 2, part=5)
DRAW = np.random.default_rng(0)
BLOCKS = [(64,), (1,), (32, 32, 8, 4, 1), (1, 2, 4, 8, 16, 32, 64), (64, 4096, 64, 4096, 16), (2, 1), (1 << 17,), ()]
LEVELS = np.array([0.245, 0.756, 1.344, 2.152], np.float32)


@st.composite
def chunked(draw):
    x = draw(hnp.arrays(np.float32, st.integers(0, 200), elements=draw(st.sampled_from([FEW, ANY]))))
    inner = draw(st.lists(st.integers(0, x.size), max_size=5))
    edges = np.array([0, *sorted(inner), x.size])
    return x, edges, np.array([draw(st.integers(0, b - a)) for a, b in pairwise(edges.tolist())])


def spread(n):
    """Numbers of many magnitudes."""
    return DRAW.standard_normal(n, np.float32) * np.float32(10) ** DRAW.uniform(-6, 6, n).astype(np.float32)


def thresholds(x, bounds, ks):
    cuts = zip(pairwise(bounds), ks, strict=True)
    return np.array([kernels.magnitude_threshold(x[a:b], k) if b > a else 0 for (a, b), k in cuts], np.float32)


def edges_of(sizes):
    return np.cumsum([0, *sizes])


def mean_and_root(kept, kept_l1, total_l2sq):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(kept > 0, np.sqrt(total_l2sq / kept), 0.0)


@given(case=chunked())
@on_every_device
def test_exactly_the_largest_and_the_first_of_equals(case, where):
    x, edges, ks = case
    mask, values, kept = device.keep_largest(torch.from_numpy(x).to(where), edges, ks)
    expected = kernels.keep_largest(x, edges, ks)
    assert device.to_host(device.pack_bits(mask)).tobytes() == expected[0].tobytes()
    assert device.to_host(values).tobytes() == expected[1].tobytes() and np.array_equal(kept, expected[2])


@given(case=chunked())
@on_every_device
def test_thresholds_keep_ties_and_never_zeros(case, where):
    x, bounds, ks = case
    ks = np.maximum(ks, 1)
    got = device.pack_ternary(torch.from_numpy(x).to(where), bounds, ks, mean_and_root)
    mask, signs, kept, *both = kernels.pack_ternary(x, bounds, thresholds(x, bounds, ks))
    assert device.to_host(got[0]).tobytes() == mask.tobytes() and device.to_host(got[1]).tobytes() == signs.tobytes()
    assert np.array_equal(got[2], kept)
    assert got[3].tobytes() == mean_and_root(kept, *both).astype(np.float32).tobytes()


def test_what_numba_adds_for_a_slot_alone_it_adds_as_for_the_whole(monkeypatch):
    def last_bits(kept, kept_l1, total_l2sq):
        return ((kept_l1.view(np.int64) ^ total_l2sq.view(np.int64)) & 0xFFFFF).astype(np.float64)

    monkeypatch.setattr(sums, "settled", lambda value, slack: np.zeros(value.shape, bool))
    x, bounds = spread(50_000), np.array([0, 777, 778, 2900, 2900, 25_000, 50_000])
    ks = np.maximum(1, np.diff(bounds) // 2)
    scales = device.pack_ternary(torch.from_numpy(x), bounds, ks, last_bits)[3]
    expected = last_bits(*kernels.pack_ternary(x, bounds, thresholds(x, bounds, ks))[2:])
    assert scales.tolist() == expected.tolist() and expected.any()


@on_every_device
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, 70_001])
def test_every_rank_is_a_full_sorts(n, where):
    for x in (spread(n), DRAW.integers(-2, 3, n).astype(np.float32), np.zeros(n, np.float32) * -1):
        ordered = np.sort(np.abs(x))[::-1].copy().view(np.int32)
        bits = torch.from_numpy(np.abs(x).view(np.int32)).to(where)[None]
        for k in {1, 2, 64, n // 2, n} & set(range(1, n + 1)):
            assert int(device.kth_magnitude(bits, torch.tensor([[k]], device=where))) == ordered[k - 1]


@on_every_device
@pytest.mark.parametrize("sizes", BLOCKS, ids=repr)
def test_the_butterfly_is_the_same(sizes, where):
    edges = edges_of(sizes)
    x = spread(int(edges[-1]))
    there = torch.from_numpy(x.copy()).to(where)
    words = STREAM.words(-(-x.size // 32))
    flipped = device.flip_signs(there, device.stream_words(STREAM, words.size, 0, there.device))
    turned = device.to_host(device.walsh_hadamard(flipped, edges))
    assert torch.equal(there.cpu(), torch.from_numpy(x)), "the argument was written to"
    kernels.flip_signs(x, words)
    assert device.to_host(flipped).tobytes() == x.tobytes()
    kernels.walsh_hadamard(x, edges)
    assert turned.tobytes() == x.tobytes()


@on_every_device
@pytest.mark.parametrize("sizes", BLOCKS, ids=repr)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_strata_and_rows_are_the_same(sizes, share, where):
    edges = edges_of(sizes)
    x, factors = spread(int(edges[-1])), (0.5 ** np.arange(len(sizes))).astype(np.float32)
    k = round(share * x.size)
    drawn = device.stratified(device.stream_words(STREAM, 2 * k, 3, torch.device(where)), x.size)
    chosen = kernels.stratified(STREAM.words(2 * k, 3), x.size)
    assert np.array_equal(device.to_host(drawn), chosen)
    words = STREAM.words(-(-x.size // 32), 9)
    there = device.stream_words(STREAM, words.size, 9, torch.device(where))
    y = device.sample_hadamard(torch.from_numpy(x).to(where), edges, there, drawn, factors)
    assert device.to_host(y).tobytes() == kernels.sample_hadamard(x, edges, words, chosen, factors).tobytes()


@on_every_device
@pytest.mark.parametrize("start", [0, 1, 5, 2**20 + 7, 2**33 + 1])
@pytest.mark.parametrize("n", [0, 1, 4, 63])
def test_words_are_the_streams(start, n, where):
    words = device.stream_words(STREAM, n, start, torch.device(where))
    assert words.tolist() == STREAM.words(n, start).tolist()


@on_every_device
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_codes_are_packed_as_numba_packs_them(width, n, where):
    codes = DRAW.integers(0, 1 << width, n).astype(np.uint8)
    packed = device.to_host(device.pack_codes(torch.from_numpy(codes).to(where), width))
    assert packed.tobytes() == pack_symbols(codes, width).tobytes()


@pytest.mark.parametrize("width", [0, 3, 8])
def test_other_widths_are_named(width):
    with pytest.raises(ValueError, match=f"width: expected 1, 2 or 4 bits, got {width}"):
        device.pack_codes(torch.zeros(8, dtype=torch.uint8), width)


@on_every_device
@pytest.mark.parametrize("sizes", BLOCKS[:-1], ids=repr)
@pytest.mark.parametrize("half", [1, 2, 4])
def test_codes_and_scales_are_the_same(sizes, half, where):
    def scale(found, sizes):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(found[1] > 0, np.sqrt(found[0] / found[2]) / sizes, 0.0)

    edges = edges_of(sizes)
    for x in (
        spread(int(edges[-1])),
        DRAW.standard_normal(int(edges[-1]), np.float32),
        np.zeros(edges[-1], np.float32),
    ):
        codes, scales = device.quantise_normal(torch.from_numpy(x).to(where), edges, LEVELS[:half], scale)
        expected, found = kernels.quantise_normal(x, edges, LEVELS[:half])
        assert device.to_host(codes).tobytes() == expected.tobytes()
        assert scales.tobytes() == scale(found, np.diff(edges)).astype(np.float32).tobytes()


def test_a_deviation_halfway_between_two_floats_is_not_settled():
    """Legs 3 j and 4 j are float32 numbers, and the hypotenuse 5 j, of one bit more, lies between two."""
    j = 3_355_445
    x = np.zeros(64, np.float32)
    x[:16], x[16:32] = 3 * j, 4 * j
    square = sums.row_sums(sums.squares, torch.from_numpy(x)[None])
    assert isqrt(int(square[0]) * 4 // 64) == 5 * j
    assert not sums.settled(np.sqrt(square / 64), sums.slack(sums.additions(64), 64))[0]
    assert sums.settled(np.sqrt(square / 64) + 0.25, sums.slack(sums.additions(64), 64))[0]


@on_every_device
@pytest.mark.parametrize("n", [1, 1000, 1024, 1025, (1 << 20) + 3])
def test_a_sum_lies_within_its_bound_of_the_exact_one(n, where):
    x = np.abs(spread(n))
    exact = sum(map(int, (x.astype(np.float64) * 2.0**60).tolist())) / 2.0**60
    (got,) = sums.row_sums(lambda piece: piece.double(), torch.from_numpy(x).to(where)[None])
    assert abs(got - exact) <= exact * sums.additions(n) * 2.0**-53


def test_ranges_of_a_size_are_gathered_in_pieces(monkeypatch):
    monkeypatch.setattr(rows, "MOST", 10)
    edges, x = edges_of((3, 4, 4, 0, 3, 4, 3, 20, 3)), torch.arange(44)
    out, seen = torch.zeros_like(x), []
    for group in rows.equal_rows(edges):
        assert group.of(x)[:, 0].tolist() == edges[group.which].tolist()
        group.put(group.of(x), out)
        seen += group.which.tolist()
    assert torch.equal(out, x) and sorted(seen) == [0, 1, 2, 4, 5, 6, 7, 8]
