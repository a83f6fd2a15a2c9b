"""A history of scalars comes to the same adapter everywhere: plain numpy, numba, and torch on any device.

On a machine with a GPU: python -m pytest tests/peers/test_replay.py -k cuda
"""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft import kernels
from fedpeft.kernels import device
from fedpeft.peers.scalar import ScalarLedger, directions_seed
from fedpeft.random import Purpose, Stream, philox_numpy
from fedpeft.training.subspace import Subspace
from tests.kernels.test_hadamard import by_numpy

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
on_every_device = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=needs_cuda)])
RUNS = [(70_000, 4096), (1 << 16, 1 << 16), (100, 64), (1, 1), (82_968, 1024), (23, 2)]
SEED = directions_seed(bytes(range(32)), 11)


def words(purpose, n, start=0, epoch=0, peer=0):
    """Of a stream, without a kernel."""
    return philox_numpy(Stream(SEED, purpose).key, (epoch, peer, int(purpose)), start, n)


def base_of(d):
    """Some adapter, with zeros of both signs in it."""
    numbers = words(Purpose.INIT, d).astype(np.int32).astype(np.float32) * np.float32(2**-32)
    numbers[::7] = 0
    numbers[::21] = -0.0
    return numbers


def history(per_segment, epochs=3, peers=4):
    """Bodies of all codes, full and short."""
    codes = words(Purpose.NETWORK, epochs * peers * 2 * per_segment).astype(np.uint8)
    codes[codes == 128] = 7
    bodies = iter(codes.reshape(-1, per_segment))
    return {
        epoch: {peer: [next(bodies).tobytes(), next(bodies)[: 1 + peer * 3].tobytes()] for peer in range(1, peers + 1)}
        for epoch in range(1, epochs + 1)
    }


def level(code):
    magnitude = code % 128
    value = magnitude if magnitude < 8 else (8 + magnitude % 8) << (magnitude // 8 - 1)
    return -value if code > 128 else value


def sums_by_hand(k, per_segment):
    """One scalar after the other, in whole numbers of any size."""
    sums = [0] * k
    for epoch, members in history(per_segment).items():
        for peer, bodies in members.items():
            for number, body in enumerate(bodies):
                drawn = words(Purpose.DIRECTION, per_segment, number * per_segment, epoch, peer)
                for word, code in zip(drawn.tolist(), body, strict=False):
                    sums[word % k] += level(code)
    return sums


def adapter_by_numpy(d, k, sums, unit):
    """The whole of it in the letters of its definition: base + D H y / sqrt(n), block by block."""
    sizes, left = [], d
    while left:
        sizes.append(min(1 << 16, 1 << left.bit_length() - 1))
        left -= sizes[-1]
    low_high = words(Purpose.DIRECTION, 2 * k).reshape(k, 2).tolist()
    edges = [i * d // k for i in range(k + 1)]
    rows = [
        a + (low >> 1 | high << 31) % (b - a) for (low, high), (a, b) in zip(low_high, pairwise(edges), strict=True)
    ]
    signs = np.unpackbits(words(Purpose.DIRECTION, -(-d // 32), 2 * k).view(np.uint8), bitorder="little")[:d]
    y = np.zeros(d, np.float32)
    y[rows] = np.array(sums, np.int64).astype(np.float32) * np.float32(unit)
    out, begin = np.empty(d, np.float32), 0
    for n in sizes:
        block = slice(begin, begin + n)
        turned = by_numpy(y[block] * np.float32(np.sqrt(1 / n)))
        out[block] = np.where(signs[block], -turned, turned) + np.float32(0)
        begin += n
    return base_of(d) + out


def replayed(d, k, where="cpu"):
    ledger = ScalarLedger(torch.from_numpy(base_of(d)).to(where), SEED, k, unit=0.003, per_segment=40)
    state = ledger.beginning()
    for epoch, bodies in history(40).items():
        state = ledger.fold(state, epoch, bodies)
    return state, device.to_host(ledger.adapter(state))


def plus_zero(x):
    """Zeros of one sign: the reference adds blocks that no direction reaches, too."""
    return x + np.float32(0)


@pytest.mark.parametrize(("d", "k"), RUNS)
def test_numba_does_what_the_definition_says(d, k):
    state, adapter = replayed(d, k)
    sums = sums_by_hand(k, 40)
    assert state == b"".join(total.to_bytes(8, "little", signed=True) for total in sums)
    assert plus_zero(adapter).tobytes() == plus_zero(adapter_by_numpy(d, k, sums, 0.003)).tobytes()


@on_every_device
@pytest.mark.parametrize(("d", "k"), RUNS)
def test_torch_comes_to_the_bits_of_numba(d, k, where):
    state, adapter = replayed(d, k)
    with device.anywhere():
        there = replayed(d, k, where)
    assert there[0] == state
    assert there[1].tobytes() == adapter.tobytes()


@on_every_device
@pytest.mark.parametrize("sizes", [(64,), (1,), (32, 32, 8, 4, 1), (64, 4096, 64, 4096, 16), (2, 1)], ids=repr)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_spreading_is_the_same(sizes, share, where):
    edges, n, draw = np.cumsum([0, *sizes]), sum(sizes), np.random.default_rng(0)
    rows = np.sort(draw.permutation(n)[: round(share * n)])
    y, factors = draw.standard_normal(rows.size, np.float32), draw.standard_normal(len(sizes), np.float32)
    signs = words(Purpose.DIRECTION, -(-n // 32))
    there = device.spread_hadamard(
        torch.from_numpy(y).to(where),
        edges,
        torch.from_numpy(signs.astype(np.int64)).to(where),
        torch.from_numpy(rows).to(where),
        factors,
    )
    assert device.to_host(there).tobytes() == kernels.spread_hadamard(y, edges, signs, rows, factors).tobytes()


@on_every_device
def test_products_and_single_directions_are_the_same(where):
    subspace, x = Subspace(70_000, 512, SEED), torch.from_numpy(base_of(70_000))
    products, direction = subspace.products(x), subspace.along(np.ones(1), x, np.array([7]))
    with device.anywhere():
        assert subspace.products(x.to(where)).tobytes() == products.tobytes()
        there = subspace.along(np.ones(1), x.to(where), np.array([7]))
    assert device.to_host(there).tobytes() == direction.numpy().tobytes()


def test_a_history_keeps_its_hash():
    """What was logged must mean the same on every platform, and next year."""
    state, adapter = replayed(82_968, 1024)
    assert hashlib.sha256(state).hexdigest()[:16] == "ab2b4e98cd72a599"
    assert hashlib.sha256(adapter.tobytes()).hexdigest()[:16] == "e6fa9e77464531b8"
