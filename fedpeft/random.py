"""All randomness of a run, from counters and a key: Philox4x32-10 and never a global generator.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A word of randomness is a
pure function of (run seed, purpose, round, client, index), so a resumed run, another machine or another back end
draws the same bits without any state to save. Three implementations give identical words: numpy here, integer
operations of torch here (any device), numba in `fedpeft.kernels`.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft import kernels

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10


class Purpose(IntEnum):
    """What a stream is drawn for; two purposes never share a word."""

    INIT = 1
    SPLIT = 2
    PARTITION = 3
    COHORT = 4
    DATA = 5
    DROPOUT = 6
    CODEC_SHARED = 7
    CODEC_PRIVATE = 8
    SUPERMASK = 9
    STRATEGY = 10
    TOPOLOGY = 11
    NETWORK = 12
    DIRECTION = 13


@dataclass(frozen=True)
class Stream:
    """An endless sequence of 32-bit words, addressed by what it is drawn for.

    >>> Stream(seed=0, purpose=Purpose.DATA, round=1, client=2).permutation(4).tolist()
    [1, 0, 2, 3]

    Args:
        seed: the run's seed, any integer; hashed into the 64-bit Philox key.
        purpose: what the words are used for.
        round: round number in [0, 2^32).
        client: client number in [0, 2^32).
        part: tells streams of one purpose apart, in [0, 2^24).
    """

    seed: int
    purpose: Purpose
    round: int = 0
    client: int = 0
    part: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("round", 32), ("client", 32), ("part", 24)):
            if not 0 <= getattr(self, name) < 1 << bits:
                raise ValueError(f"{name} must lie in [0, 2^{bits}), got {getattr(self, name)}")

    @property
    def key(self) -> tuple[int, int]:
        """The two 32-bit words of the Philox key, hashed from the seed."""
        digest = hashlib.sha256(f"fedpeft/{self.seed}".encode()).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")

    def words(self, n: int, start: int = 0) -> NDArray[np.uint32]:
        """Words `start` to `start + n` of the stream, shape (n,)."""
        return kernels.philox_words(*self.key, self.round, self.client, self.purpose | self.part << 8, start, n)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """`n` numbers in [0, 1) with 53 random bits each."""
        pairs = self.words(2 * n).reshape(n, 2).astype(np.uint64)
        high, low = pairs[:, 0] >> np.uint64(5), pairs[:, 1] >> np.uint64(6)
        uniform: NDArray[np.float64] = (high * 67108864.0 + low) / 9007199254740992.0
        return uniform

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniform permutation of 0 .. n - 1: the order of `n` random 64-bit keys."""
        return np.argsort(self.words(2 * n).view(np.uint64), kind="stable").astype(np.int64)

    def normal(self, n: int) -> NDArray[np.float64]:
        """`n` standard normal numbers (Box and Muller, 1958)."""
        return _box_muller(*self.uniform(2 * n).reshape(2, n))

    def gamma(self, shape: float, n: int) -> NDArray[np.float64]:
        """`n` gamma numbers of unit scale (Marsaglia and Tsang, ACM TOMS 26, 2000); `shape` > 0."""
        if shape <= 0:
            raise ValueError(f"shape must be positive, got {shape}")
        boosted = shape if shape >= 1 else shape + 1
        d = boosted - 1 / 3
        tries = 2 * n + 64
        u = self.uniform(4 * tries)
        x = _box_muller(u[:tries], u[tries : 2 * tries])
        v = (1 + x / np.sqrt(9 * d)) ** 3
        with np.errstate(invalid="ignore", divide="ignore"):
            kept = (v > 0) & (np.log(u[2 * tries : 3 * tries]) < 0.5 * x * x + d - d * v + d * np.log(v))
        accepted: NDArray[np.float64] = (d * v)[kept][:n]
        if shape < 1:
            accepted = accepted * (1 - u[3 * tries : 3 * tries + n]) ** (1 / shape)
        return accepted


def _box_muller(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v)
    return normal


def philox_numpy(key: tuple[int, int], counter: tuple[int, int, int], start: int, n: int) -> NDArray[np.uint32]:
    """The words of `Stream.words`, from numpy operations alone; `counter` is (round, client, purpose)."""
    first, last = start // 4, -(-(start + n) // 4)
    low = np.uint64(_LOW)
    c0: NDArray[np.uint64] = np.arange(first, last, dtype=np.uint64)
    c1, c2, c3 = (c0 * np.uint64(0) + np.uint64(c) for c in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * np.uint64(_MULTIPLIER[0]), c2 * np.uint64(_MULTIPLIER[1])
        c0, c2 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & low, p0 & low
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    blocks = np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32).reshape(-1)
    return blocks[start - 4 * first :][:n]


def philox_torch(
    key: tuple[int, int],
    counter: tuple[int, int, int],
    start: int,
    n: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The words of `Stream.words` as an int64 tensor on any device: integer operations only, so bit-exact."""
    first, last = start // 4, -(-(start + n) // 4)
    c0 = torch.arange(first, last, dtype=torch.int64, device=device)
    c1, c2, c3 = (torch.full_like(c0, c) for c in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64: the low 64 bits, and so both halves below, are those of uint64.
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=1).reshape(-1)[start - 4 * first :][:n]


@contextmanager
def scoped_torch_generator(stream: Stream, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let third-party code that draws from torch's global generator (PEFT's initialisers, dropout) draw from `stream`.

    The generator's state is put back on exit, so nothing outside the block sees a change.
    """
    seed = int(stream.words(2).view(np.uint64)[0]) >> 1
    device = torch.device(device)
    cuda: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
