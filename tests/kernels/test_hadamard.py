"""The fixed butterfly: the same bits from numba, from numpy and from torch, in blocks and rows."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft import kernels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DRAW = np.random.default_rng(0)
WORDS = DRAW.integers(0, 1 << 32, 1 << 12, dtype=np.uint32)


def by_numpy(x):
    """One stage after the other."""
    h = 1
    while h < x.size:
        pairs = x.reshape(-1, 2, h)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        h *= 2
    return x


def by_torch(x):
    """One stage after the other, on whatever device the numbers are."""
    h = 1
    while h < x.numel():
        a, b = x.view(-1, 2, h).unbind(1)
        x = torch.stack([a + b, a - b], dim=1).view(-1)
        h *= 2
    return x


def signs_by_numpy(words, n):
    return 1 - 2.0 * np.unpackbits(words.view(np.uint8), bitorder="little")[:n].astype(np.float32)


def edges_of(*sizes):
    return np.cumsum([0, *sizes])


@pytest.mark.parametrize("log", [*range(17), 18, 19, 21])
def test_numba_and_numpy_agree_to_the_last_bit(log):
    x = DRAW.standard_normal(1 << log, np.float32) * 10 ** DRAW.uniform(-6, 6, 1 << log).astype(np.float32)
    y = x.copy()
    kernels.walsh_hadamard(y, edges_of(x.size))
    assert y.tobytes() == by_numpy(x).tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("log", [0, 1, 2, 3, 8, 15, 16, 18, 20])
def test_torch_agrees_on_any_device(device, log):
    x = DRAW.standard_normal(1 << log, np.float32)
    there = by_torch(torch.from_numpy(x.copy()).to(device)).cpu().numpy()
    kernels.walsh_hadamard(x, edges_of(x.size))
    assert x.tobytes() == there.tobytes()


def test_it_is_the_matrix_and_its_own_inverse():
    matrix = np.array([[1.0]])
    for _ in range(6):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    x = DRAW.integers(-100, 100, 64).astype(np.float32)
    y = x.copy()
    kernels.walsh_hadamard(y, edges_of(64))
    assert np.array_equal(y, matrix @ x)
    kernels.walsh_hadamard(y, edges_of(64))
    assert np.array_equal(y, 64 * x)


def test_blocks_are_alone():
    sizes = (16, 1, 1024, 2, 8, 1 << 16, 4)
    x = DRAW.standard_normal(sum(sizes), np.float32)
    y, edges = x.copy(), edges_of(*sizes)
    kernels.walsh_hadamard(y, edges)
    for begin, end in pairwise(edges):
        assert y[begin:end].tobytes() == by_numpy(x[begin:end]).tobytes()


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 1000])
def test_signs_are_the_words_bits(n):
    x = DRAW.standard_normal(n).astype(np.float32)
    y = x.copy()
    kernels.flip_signs(y, WORDS)
    assert y.tobytes() == (x * signs_by_numpy(WORDS, n)).tobytes()
    kernels.flip_signs(y, WORDS)
    assert y.tobytes() == x.tobytes()


def test_zeros_have_signs_too():
    x = np.zeros(32, np.float32)
    kernels.flip_signs(x, np.array([0x80000001], np.uint32))
    assert np.flatnonzero(np.signbit(x)).tolist() == [0, 31]


@pytest.mark.parametrize("sizes", [(64,), (32, 32, 8, 4, 1), (1, 2, 4, 8, 16, 32, 64), (4096, 4096, 16), (2, 1)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_rows_are_those_of_the_whole(sizes, share):
    edges, n = edges_of(*sizes), sum(sizes)
    rows = np.sort(DRAW.permutation(n)[: round(share * n)])
    factors = (0.5 ** np.arange(len(sizes))).astype(np.float32)
    each = np.repeat(factors, sizes)
    x = DRAW.standard_normal(n).astype(np.float32)
    whole = x.copy()
    kernels.flip_signs(whole, WORDS)
    kernels.walsh_hadamard(whole, edges)
    y = kernels.sample_hadamard(x, edges, WORDS, rows, factors)
    assert y.tobytes() == (whole * each)[rows].tobytes()
    back = np.zeros(n, np.float32)
    back[rows] = y * each[rows]
    kernels.walsh_hadamard(back, edges)
    kernels.flip_signs(back, WORDS)
    came = kernels.spread_hadamard(y, edges, WORDS, rows, factors)
    assert np.array_equal(came, back)
    assert np.isclose(came @ x, y @ y, rtol=1e-3), "the one is the transpose of the other"


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.walsh_hadamard(np.zeros(6, np.float32), edges_of(6)), "blocks of powers of two from 0 to 6"),
        (lambda: kernels.walsh_hadamard(np.zeros(8, np.float32), edges_of(4)), "blocks of powers of two from 0 to 8"),
        (lambda: kernels.walsh_hadamard(np.zeros(8), edges_of(8)), "x: expected one contiguous writable dimension"),
        (lambda: kernels.flip_signs(np.zeros(33, np.float32), WORDS[:1]), "words: expected at least 2, got 1"),
        (lambda: sample(rows=[0, 0]), r"rows: expected to rise within \[0, 8\)"),
        (lambda: sample(rows=[8]), r"rows: expected to rise within \[0, 8\)"),
        (lambda: sample(rows=[-1]), r"rows: expected to rise within \[0, 8\)"),
        (lambda: sample(factors=[1, 1]), "factors: expected one for each of 1 blocks, got 2"),
        (
            lambda: kernels.spread_hadamard(ONE, edges_of(8), WORDS, np.array([1, 2]), ONE),
            "y: expected one number for each of 2 rows, got 1",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def sample(rows=(0,), factors=(1,)):
    x, rows, factors = np.zeros(8, np.float32), np.array(rows), np.array(factors, np.float32)
    return kernels.sample_hadamard(x, edges_of(8), WORDS, rows, factors)
