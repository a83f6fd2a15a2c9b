"""Randomness from counters: known answers, three implementations, and the numbers that are made of the words."""

import numpy as np
import pytest
import torch

from fedpeft import kernels
from fedpeft.codecs import Context
from fedpeft.random import Purpose, Stream, philox_numpy, philox_torch, scoped_torch_generator

# Random123 1.14, tests/kat_vectors: philox4x32 10; counter, key, answer.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
STREAM = Stream(seed=7, purpose=Purpose.DATA, round=3, client=2)
N = 200_000


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert tuple(kernels.philox_block(np.array(counter, np.uint32), np.array(key, np.uint32)).tolist()) == answer
    start, rest = 4 * counter[0], counter[1:]
    assert tuple(kernels.philox_words(*key, *rest, start, 4).tolist()) == answer
    assert tuple(philox_numpy(key, rest, start, 4).tolist()) == answer
    assert tuple(philox_torch(key, rest, start, 4).tolist()) == answer


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 1023, 2**20 + 7, 2**33 + 1])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 63, 1000])
def test_numba_numpy_and_torch_draw_the_same_words(start, n):
    counter = (STREAM.round, STREAM.client, int(STREAM.purpose))
    words = STREAM.words(n, start)
    assert words.dtype == np.uint32 and words.shape == (n,)
    assert np.array_equal(words, philox_numpy(STREAM.key, counter, start, n))
    assert words.tolist() == philox_torch(STREAM.key, counter, start, n).tolist()
    assert np.array_equal(words, STREAM.words(n + start, 0)[start:] if start < 2**21 else words)


def test_what_a_stream_draws_never_changes():
    assert Stream(seed=0, purpose=Purpose.DATA, round=1, client=2).words(4).tolist() == [
        1540544407,
        1669175108,
        1499550019,
        982454150,
    ]
    assert {p.name: int(p) for p in Purpose} == {
        "INIT": 1,
        "SPLIT": 2,
        "PARTITION": 3,
        "COHORT": 4,
        "DATA": 5,
        "DROPOUT": 6,
        "CODEC_SHARED": 7,
        "CODEC_PRIVATE": 8,
        "SUPERMASK": 9,
        "STRATEGY": 10,
        "TOPOLOGY": 11,
        "NETWORK": 12,
        "DIRECTION": 13,
    }


def test_streams_differ_by_every_coordinate_and_by_nothing_else():
    streams = [
        Stream(seed, purpose, number, client)
        for seed in (0, 1, -1, 2**64)
        for purpose in Purpose
        for number in (0, 1, 2**32 - 1)
        for client in (0, 1, 2**32 - 1)
    ]
    words = np.stack([stream.words(64) for stream in streams])
    assert len({row.tobytes() for row in words}) == len(streams)
    assert len(np.unique(words)) > 0.999 * words.size
    assert np.array_equal(Stream(7, Purpose.DATA, 3, 2).words(64), STREAM.words(64))


def test_a_contexts_streams_are_shared_or_private():
    one, other, later = Context(1, 2, 3), Context(1, 2, 4), Context(1, 3, 3)
    assert np.array_equal(one.shared.words(9), other.shared.words(9))
    drawn = [one.shared, one.private, other.private, later.shared, later.private, Context(2, 2, 3).shared]
    assert len({stream.words(9).tobytes() for stream in drawn}) == len(drawn)


@pytest.mark.parametrize("name", ["round", "client"])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_coordinate_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 2\^32\), got {value}"):
        Stream(0, Purpose.DATA, **{name: value})


@pytest.mark.parametrize(("start", "n"), [(-1, 4), (0, -1), (2**34, 1), (2**34 - 3, 4)])
def test_words_out_of_range_are_named(start, n):
    with pytest.raises(ValueError, match=rf"got {start}, {n}"):
        STREAM.words(n, start)


def test_words_are_uniform_bits():
    bits = np.unpackbits(STREAM.words(N).view(np.uint8)).reshape(N, 32)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / N**0.5


def moments(x, mean, variance):
    """Mean and variance lie within five standard errors."""
    assert abs(x.mean() - mean) < 5 * (variance / x.size) ** 0.5
    assert abs(x.var() - variance) < 5 * (((x - mean) ** 2).var() / x.size) ** 0.5


def test_uniform_numbers():
    u = STREAM.uniform(N)
    assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1
    moments(u, 1 / 2, 1 / 12)
    counts = np.histogram(u, 100, (0, 1))[0]
    assert ((counts - N / 100) ** 2 / (N / 100)).sum() < 170
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / N**0.5
    high, low = STREAM.words(2).tolist()
    assert u[0] == ((high >> 5) * 2**26 + (low >> 6)) / 2**53
    assert np.array_equal(STREAM.uniform(9), u[:9])


def test_normal_numbers():
    x = STREAM.normal(N)
    assert np.isfinite(x).all()
    moments(x, 0, 1)
    assert abs((x**3).mean()) < 5 * (15 / N) ** 0.5 and abs((x**4).mean() - 3) < 5 * (96 / N) ** 0.5
    assert abs((np.abs(x) > 1.959964).mean() - 0.05) < 5 * (0.05 * 0.95 / N) ** 0.5


@pytest.mark.parametrize("shape", [0.05, 0.3, 0.999, 1.0, 2.5, 100.0])
def test_gamma_numbers(shape):
    x = STREAM.gamma(shape, N)
    assert x.shape == (N,) and (x >= 0).all() and np.isfinite(x).all()
    moments(x, shape, shape)


@pytest.mark.parametrize("shape", [0.0, -1.0])
def test_a_gamma_without_a_shape_is_refused(shape):
    with pytest.raises(ValueError, match=f"shape must be positive, got {shape}"):
        STREAM.gamma(shape, 1)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 10_000])
def test_sizes(n):
    for x in (STREAM.uniform(n), STREAM.normal(n), STREAM.gamma(0.5, n), STREAM.gamma(2.0, n)):
        assert x.shape == (n,) and np.isfinite(x).all()
    order = STREAM.permutation(n)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))


def test_permutations_are_uniform():
    counts = np.zeros((5, 5))
    trials = 4000
    for number in range(trials):
        counts[np.arange(5), Stream(1, Purpose.DATA, number).permutation(5)] += 1
    assert ((counts - trials / 5) ** 2 / (trials / 5)).sum() < 50


def drawn(stream):
    with scoped_torch_generator(stream):
        return torch.rand(3), torch.nn.init.kaiming_uniform_(torch.empty(2, 2)), torch.randperm(9)


def test_a_scoped_generator_is_the_streams_and_leaves_the_global_one_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(STREAM)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(STREAM), strict=True))
    assert not torch.equal(first[0], drawn(Stream(8, Purpose.DATA, 3, 2))[0])


def test_a_scope_is_left_behind_by_an_error_and_nests():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises(KeyError), scoped_torch_generator(STREAM):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
    with scoped_torch_generator(STREAM):
        outer = [torch.rand(1)]
        drawn(Stream(9, Purpose.INIT))
        outer.append(torch.rand(1))
    with scoped_torch_generator(STREAM):
        assert [torch.rand(1), torch.rand(1)] == outer


def test_numpys_and_pythons_generators_are_not_asked():
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    STREAM.permutation(9), STREAM.gamma(2.0, 9), STREAM.normal(9)
    assert np.array_equal(np.random.get_state()[1], state)
