"""LowRank against torch's singular value decomposition, and hostile ranks and factors."""

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context, ErrorFeedback, LowRank, Numbers, Symbols, singular
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, all_bits, normal, there_and_back, without_type_checks

ADAPTER = Space(
    (
        Slot("a", (8, 90), "lora_A"),
        Slot("b", (70, 8), "lora_B"),
        Slot("bias", (33,), "head"),
        Slot("conv", (6, 5, 3, 3), "head"),
        Slot("small", (2, 2), "head"),
    )
)
MATRICES = {"a": (8, 90), "b": (70, 8), "conv": (6, 45)}


def by_svd(matrix, rank):
    """The nearest matrix of a rank."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.mark.parametrize("rank", [1, 2, 5, 8, 255])
def test_it_is_the_nearest_of_its_rank(rank):
    x = normal(ADAPTER)
    y = there_and_back(LowRank(rank), x, ADAPTER)
    for name, shape in MATRICES.items():
        a, b = (ADAPTER.view(v, name).reshape(shape).double() for v in (x, y))
        nearest = by_svd(a, rank)
        assert (b - nearest).norm() < 6e-4 * a.norm()
        assert (a - b).norm() <= ((a - nearest).norm() ** 2 + (6e-4 * a.norm()) ** 2).sqrt()
    for name in ("bias", "small") if rank > 1 else ("bias",):
        assert torch.equal(ADAPTER.view(x, name), ADAPTER.view(y, name))


def test_what_would_not_be_shorter_goes_whole():
    sizes = {name: field.numel for name, field in LowRank(8).layout(ADAPTER).items()}
    assert sizes == {"values": 22, "left": 64 + 560 + 36, "right": 720 + 64 + 270, "whole": 33 + 4}
    square = Space((Slot("a", (16, 16), "lora_A"),))
    assert LowRank(16).layout(square)["whole"].numel == 256
    assert LowRank(15).layout(square)["left"].numel == 240
    assert {field.ragged for field in LowRank(8).layout(ADAPTER).values()} == {False}
    ragged = LowRank(8, energy=0.5).layout(ADAPTER)
    assert {name for name, field in ragged.items() if field.ragged} == {"values", "left", "right"}
    assert ragged["rank"].numel == 3 and ragged["rank"].levels == 9


@pytest.mark.parametrize("energy", [1e-6, 0.5, 0.9, 0.99, 1.0])
def test_the_fewest_that_have_the_energy(energy):
    x = normal(ADAPTER)
    ranks = LowRank(8, energy).encode(x, ADAPTER, CONTEXT)["rank"].values.tolist()
    for rank, (name, shape) in zip(ranks, MATRICES.items(), strict=True):
        squares = torch.linalg.svdvals(ADAPTER.view(x, name).reshape(shape).double()) ** 2
        shares = squares.cumsum(0) / squares.sum()
        assert shares[rank - 1] >= energy - 1e-9
        assert rank == 1 or shares[rank - 2] < energy
    assert max(LowRank(2, energy).encode(x, ADAPTER, CONTEXT)["rank"].values) <= 2


@pytest.mark.parametrize("true_rank", [0, 1, 3])
def test_a_matrix_of_low_rank_is_sent_whole_with_that_rank(true_rank):
    space = Space((Slot("a", (16, 500), "lora_A"),))
    draw = np.random.default_rng(0)
    x = (
        torch.from_numpy(draw.standard_normal((16, true_rank)) @ draw.standard_normal((true_rank, 500)))
        .float()
        .reshape(-1)
    )
    parts = LowRank(12, energy=1 - 1e-9).encode(x, space, CONTEXT)
    assert parts["rank"].values.tolist() == [true_rank]
    y = LowRank(12, energy=1 - 1e-9).decode(parts, space, CONTEXT)
    assert (y - x).norm() <= 1e-3 * x.norm()


@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
def test_a_large_matrix_is_iterated_on(shape):
    space = Space((Slot("a", shape, "head"),))
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.standard_normal((n, 40))).Q for n in shape)
    x = torch.from_numpy(left * 0.8 ** np.arange(40) @ right.T).float()
    for energy, rank in ((None, 6), (0.9, 6)):
        codec = LowRank(rank, energy)
        y = there_and_back(codec, x.reshape(-1), space).view(shape)
        r = rank if energy is None else 6
        assert min(shape) > singular._EXACT
        assert (x - y).norm() < 1.001 * (x - by_svd(x, r)).norm()
    first, second = (all_bits(LowRank(2).encode(x.reshape(-1), space, CONTEXT)) for _ in range(2))
    assert first == second


def test_a_matrix_and_twice_it_have_the_same_vectors():
    x = normal(LARGE)
    for factor in (2.0, 2.0**-40, 2.0**60):
        one, other = (LowRank(2).encode(v, LARGE, CONTEXT) for v in (x, x * factor))
        assert np.array_equal(one["values"].values * np.float32(factor), other["values"].values)
        assert all(np.array_equal(one[name].values, other[name].values) for name in ("left", "right"))


def test_what_was_decoded_loses_only_rounding():
    once = there_and_back(LowRank(3), normal(LARGE), LARGE)
    assert (there_and_back(LowRank(3), once, LARGE) - once).norm() < 1e-3 * once.norm()


def test_feedback_brings_all_ranks_through():
    x, residual, total = normal(LARGE), torch.zeros(LARGE.numel), torch.zeros(LARGE.numel)
    feedback = ErrorFeedback(LowRank(1))
    for number in range(1, 61):
        parts, residual = feedback.encode(x, residual, LARGE, Context(5, number, 2))
        total += feedback.codec.decode(parts, LARGE, CONTEXT)
    assert (total / 60 - x).norm() < 0.05 * x.norm() < (there_and_back(LowRank(1), x, LARGE) - x).norm()


PAIR = Space((Slot("x.lora_A", (8, 90), "lora_A"), Slot("x.lora_B", (70, 8), "lora_B"), Slot("y", (8, 9), "head")))


def product_of(vector):
    return PAIR.view(vector, "x.lora_B").double() @ PAIR.view(vector, "x.lora_A").double()


def trained(small=1e-3):
    """An adapter whose factors have directions of very different lengths, and a small change of it."""
    start, x = normal(PAIR, 1), small * normal(PAIR, 2)
    PAIR.view(start, "x.lora_A").mul_(torch.logspace(0, -2, 8)[:, None])
    PAIR.view(start, "x.lora_B").mul_(torch.logspace(-2, 0, 8))
    return start, x


def product_error(codec, start, x):
    y = there_and_back(codec, x, PAIR, Context(start=start))
    wanted = product_of(start + x) - product_of(start)
    return float((product_of(start + y) - product_of(start + x)).norm() / wanted.norm())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_weighed_by_the_other_factor_the_product_is_nearer(rank):
    start, x = trained()
    assert product_error(LowRank(rank, weigh="product"), start, x) < 0.9 * product_error(LowRank(rank), start, x)


def test_no_other_matrix_of_the_rank_has_less_weighed_error():
    start, x = trained()
    y = there_and_back(LowRank(3, weigh="product"), x, PAIR, Context(start=start))
    for name, role in (("x.lora_A", "lora_B"), ("x.lora_B", "lora_A")):
        factor = PAIR.view(start, f"x.{role}").double()
        gram = factor.T @ factor if role == "lora_B" else factor @ factor.T
        gram = gram * 8 / gram.trace() + 0.1 * torch.eye(8)
        root = torch.linalg.cholesky(gram).T
        change, came = (PAIR.view(v, name).double() for v in (x, y))
        wanted, got = (root @ (v if name == "x.lora_A" else v.T) for v in (change, came))
        assert (wanted - got).norm() <= 1.0001 * (wanted - by_svd(wanted, 3)).norm()


def test_without_another_factor_nothing_is_weighed():
    start, x = trained()
    PAIR.view(start, "x.lora_B").zero_()
    weighed = there_and_back(LowRank(2, weigh="product"), x, PAIR, Context(start=start))
    plain = there_and_back(LowRank(2), x, PAIR)
    for name in ("x.lora_A", "y"):
        assert torch.equal(PAIR.view(weighed, name), PAIR.view(plain, name))
    assert not torch.equal(PAIR.view(weighed, "x.lora_B"), PAIR.view(plain, "x.lora_B"))
    unknown = there_and_back(LowRank(2, weigh="product"), x, PAIR)
    assert torch.equal(unknown, plain)


def test_energy_is_that_of_the_product():
    start, x = trained()
    sent = [
        LowRank(8, energy=0.9, weigh=weigh).encode(x, PAIR, Context(start=start))["rank"].values
        for weigh in ("slot", "product")
    ]
    assert (sent[1][:2] < sent[0][:2]).all()


def altered(energy=0.9, **changed):
    return {**LowRank(2, energy).encode(normal(SPACE), SPACE, CONTEXT), **changed}


@pytest.mark.parametrize("name", ["values", "left", "right", "whole"])
@pytest.mark.parametrize("more", [-1, 1])
def test_numbers_that_do_not_fit_the_ranks(name, more):
    there = altered()[name].values
    parts = altered(**{name: Numbers(np.zeros(there.size + more, there.dtype))})
    message = rf"part '{name}': the ranks need {there.size} numbers, but {there.size + more} came"
    with pytest.raises(PayloadError, match=message) as caught:
        LowRank(2, energy=0.9).decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.COUNT


def test_ranks_that_a_slot_cannot_have():
    space = Space((Slot("a", (1, 50), "head"), Slot("b", (5, 50), "head")))
    codec = LowRank(3, energy=0.9)
    parts = {**codec.encode(normal(space), space, CONTEXT), "rank": Symbols(np.array([3], np.uint8), 4)}
    sizes = {name: field.numel for name, field in codec.layout(space).items()}
    assert sizes == {"values": 3, "left": 15, "right": 150, "whole": 50, "rank": 1}
    with pytest.raises(PayloadError, match="the ranks need"):
        codec.decode({**parts, "values": Numbers(np.zeros(2, np.float32))}, space, CONTEXT)
    slim = Space((Slot("a", (2, 50), "head"),))
    parts = {**codec.encode(normal(slim), slim, CONTEXT), "rank": Symbols(np.array([3], np.uint8), 4)}
    with pytest.raises(PayloadError, match="slot 0 can have a rank of at most 2, got 3") as caught:
        codec.decode(parts, slim, CONTEXT)
    assert caught.value.defect == Defect.COUNT


@pytest.mark.parametrize("value", [3e38, -3e38])
@pytest.mark.parametrize("right", [0, 1e-4, 100])
def test_a_product_beyond_float32_is_refused(value, right):
    parts = altered(energy=None)
    parts["right"].values[:] = right
    parts["values"].values[:] = value
    parts["left"].values[:] = 60_000
    with pytest.raises(PayloadError, match="may be infinite") as caught:
        LowRank(2).decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be an integer from 1 to 255, got 0"),
        ({"rank": 256}, "rank must be an integer from 1 to 255, got 256"),
        ({"rank": True}, "rank must be an integer from 1 to 255, got True"),
        ({"weigh": "pair"}, "weigh must be 'slot' or 'product', got 'pair'"),
        ({"energy": 0.0}, r"energy must lie in \(0, 1\], got 0.0"),
        ({"energy": float("nan")}, r"energy must lie in \(0, 1\], got nan"),
    ],
)
@without_type_checks()
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LowRank(**settings)
