"""PowerSGD against the paper's algorithm and the singular value decomposition, and directions that both ends share."""

import itertools

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context, ErrorFeedback, Fragments, Identity, Numbers, PowerSGD, Turns, Uniform, chain
from fedpeft.codecs.directions import leading_rows
from fedpeft.errors import Defect, PayloadError
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, normal, there_and_back, without_type_checks

M, N = 40, 60
ROW = Space((Slot("a", (M, N), "lora_A"),))
VALUES = np.concatenate([[10, 8, 6], 0.8 ** np.arange(M - 3)])


def matrix(seed=0, values=VALUES):
    """A matrix of these singular values."""
    draw = np.random.default_rng(seed)
    left, right = np.linalg.qr(draw.standard_normal((M, M))).Q, np.linalg.qr(draw.standard_normal((N, M))).Q
    return torch.from_numpy(left * values @ right.T).float()


def rounds(codec, deltas, space=ROW, feedback=False):
    """What each round's mean update is where the public adapter takes it as it is; whole residuals at the end."""
    before, public = None, torch.zeros(space.numel)
    residuals = [torch.zeros(space.numel) for _ in deltas]
    steps = []
    for number in range(1, 61):
        contexts = [Context(5, number, i + 1, start=public, before=before) for i in range(len(deltas))]
        came = []
        for i, (delta, ctx) in enumerate(zip(deltas, contexts, strict=True)):
            wanted = delta.reshape(-1) + residuals[i]
            came.append(there_and_back(codec, wanted, space, ctx))
            residuals[i] = wanted - came[-1] if feedback else residuals[i]
        steps.append(torch.stack(came).mean(0))
        before, public = public, public + steps[-1]
    return steps, residuals


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_over_rounds_it_finds_the_truncated_singular_value_decomposition(rank):
    x = matrix()
    steps, _ = rounds(PowerSGD(rank), [x])
    losses = [float((step.view(M, N) - x).norm() / x.norm()) for step in steps]
    least = float(np.sqrt((VALUES[rank:] ** 2).sum() / (VALUES**2).sum()))
    assert losses[0] > 1.05 * least
    assert losses[-1] == pytest.approx(least, rel=1e-4)
    assert all(later < earlier + 1e-5 for earlier, later in itertools.pairwise(losses))


def test_sites_find_what_they_have_in_common():
    deltas = [matrix() + 0.3 * matrix(seed, np.ones(M)) for seed in (1, 2, 3)]
    mean = torch.stack(deltas).mean(0)
    nearest = leading_svd(mean, 3)
    assert (rounds(PowerSGD(3), deltas)[0][-1].view(M, N) - nearest).norm() < 1e-3 * mean.norm()


def leading_svd(x, rank):
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


@pytest.mark.parametrize("slot", [(M, N), (N, M)])
def test_two_rounds_are_one_step_of_algorithm_1(slot):
    """Vogels et al., 2019: P <- mean M_i Q; P^ <- orthogonalise(P); Q <- mean M_i^T P^; M^ = P^ Q^T."""
    space, codec = Space((Slot("a", slot, "lora_A"),)), PowerSGD(2)
    deltas = [matrix(seed).reshape(slot) for seed in (1, 2, 3)]
    public = torch.zeros(M * N)
    for number in (1, 2):
        directions = next(codec._slots(space, Context(5, number, start=public)))
        if directions.tall == (number == 2):
            break
    first, second = (number, number + 1)
    q = torch.from_numpy(directions.rows.T.copy())
    p = torch.stack([(d.T if directions.tall else d) @ q for d in deltas]).mean(0)
    p_hat = torch.linalg.qr(p).Q
    expected = p_hat @ torch.stack([p_hat.T @ (d.T if directions.tall else d) for d in deltas]).mean(0)
    expected = expected.T if directions.tall else expected
    start = torch.zeros(M * N)
    step = torch.stack(
        [there_and_back(codec, d.reshape(-1), space, Context(5, first, i, start=start)) for i, d in enumerate(deltas)]
    ).mean(0)
    contexts = [Context(5, second, i, start=start + step, before=start) for i in range(3)]
    came = [there_and_back(codec, d.reshape(-1), space, ctx) for d, ctx in zip(deltas, contexts, strict=True)]
    assert torch.allclose(torch.stack(came).mean(0).view(slot), expected, atol=2e-5)


def test_a_round_has_half_of_both_factors():
    parts = [PowerSGD(3).encode(matrix().reshape(-1), ROW, Context(round=number)) for number in (1, 2)]
    assert {part["values"].values.size for part in parts} == {3 * M, 3 * N}
    pair = Space((Slot("a", (8, 100), "lora_A"), Slot("b", (100, 8), "lora_B")))
    sizes = [PowerSGD(2).encode(normal(pair), pair, Context(round=n))["values"].values.size for n in (1, 2, 3)]
    assert sizes == [2 * 108] * 3


def test_what_a_projection_would_not_shorten_goes_whole():
    space = Space((Slot("a", (3, 40), "lora_A"), Slot("bias", (9,), "head"), Slot("conv", (6, 5, 2), "head")))
    x = normal(space)
    for number in (1, 2):
        y = there_and_back(PowerSGD(3), x, space, Context(round=number))
        assert torch.equal(space.view(x, "a"), space.view(y, "a"))
        assert torch.equal(space.view(x, "bias"), space.view(y, "bias"))
        assert not torch.equal(space.view(x, "conv"), space.view(y, "conv"))


def test_what_is_seen_is_a_projection():
    x = normal(LARGE)
    for number in (1, 2, 3):
        ctx = Context(5, number, start=normal(LARGE, 3), before=normal(LARGE, 4))
        once = there_and_back(PowerSGD(2), x, LARGE, ctx)
        assert torch.allclose(there_and_back(PowerSGD(2), once, LARGE, ctx), once, atol=1e-5)
        assert float((x - once) @ once) == pytest.approx(0, abs=1e-3 * float(x @ x))
        assert once.norm() < x.norm()


def test_feedback_sends_all_in_time():
    x = matrix()
    steps, (residual,) = rounds(PowerSGD(2), [x], feedback=True)
    sent = torch.stack(steps).sum(0).view(M, N)
    assert torch.allclose(60 * x - sent, residual.view(M, N), atol=1e-2)
    assert (sent / 60 - x).norm() < 0.1 * x.norm()


def test_feedback_of_the_projections_codec_too():
    _steps, (residual,) = rounds(PowerSGD(2, Uniform(bits=4)), [matrix()], feedback=True)
    assert residual.norm() < 0.1 * 60 * matrix().norm()


def test_the_step_says_where_to_look_and_sites_agree():
    x = matrix()
    ctx = Context(5, 4, 1, start=x.reshape(-1), before=torch.zeros(M * N))
    seen = there_and_back(PowerSGD(3), x.reshape(-1), ROW, ctx)
    assert (seen.view(M, N) - leading_svd(x, 3)).norm() < 0.02 * x.norm()
    parts = PowerSGD(3).encode(x.reshape(-1), ROW, ctx)
    other = Context(5, 4, 7, start=ctx.start, before=ctx.before)
    assert torch.equal(PowerSGD(3).decode(parts, ROW, other), seen)


@pytest.mark.parametrize("shape", [(1, 5), (30, 5), (5, 30), (300, 70)])
@pytest.mark.parametrize("true_rank", [0, 1, 2, 5])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_directions_are_orthonormal_and_hold_the_leading_vectors(shape, true_rank, scale):
    m, n = shape
    draw = np.random.default_rng(0)
    step = draw.standard_normal((m, true_rank)) @ draw.standard_normal((true_rank, n))
    rank = min(4, n)
    words = Stream(1, Purpose.CODEC_SHARED).words(rank * (m + n))
    rows = leading_rows((scale * step).astype(np.float32), rank, words).astype(np.float64)
    assert np.allclose(rows @ rows.T, np.eye(rank), atol=1e-6)
    if true_rank <= rank:
        assert np.linalg.norm(step - step @ rows.T @ rows) <= 1e-4 * np.linalg.norm(step)
    assert not true_rank or not np.allclose(rows, leading_rows(np.zeros(shape, np.float32), rank, words), atol=0.1)


@pytest.mark.parametrize("number", [1, 2])
def test_projections_of_the_other_side_are_refused(number):
    parts = PowerSGD(2).encode(normal(ROW), ROW, Context(round=number))
    with pytest.raises(PayloadError, match=r"part 'values': expected \d+, got \d+") as caught:
        PowerSGD(2).decode(parts, ROW, Context(round=number + 1))
    assert caught.value.defect == Defect.COUNT


def test_a_product_beyond_float32_is_refused():
    parts = PowerSGD(2).encode(normal(SPACE), SPACE, CONTEXT)
    huge = {"values": Numbers(np.full(parts["values"].values.size, 3e38, np.float32))}
    with pytest.raises(PayloadError, match="may be infinite") as caught:
        PowerSGD(2).decode(huge, SPACE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE
    with pytest.raises(ValueError, match="a projection of the delta is beyond the range of float32"):
        PowerSGD(2).encode(torch.full((SPACE.numel,), 3e38), SPACE, CONTEXT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerSGD(rank=0), "rank must be an integer from 1 to 255, got 0"),
        (lambda: PowerSGD(rank=1.0), "rank must be an integer from 1 to 255, got 1.0"),
        (lambda: PowerSGD(codec=3), "PowerSGD: codec must be a codec, got 3"),
        (lambda: PowerSGD(codec=PowerSGD()), "reads whole slots, and would get projections"),
        (lambda: PowerSGD(codec=ErrorFeedback(Identity())), r"codec must be a codec, got ErrorFeedback\("),
        (lambda: Fragments(PowerSGD(), 2), "reads the last round's step, which carried another fragment"),
        (lambda: Turns(PowerSGD(), ("lora_A", "lora_B")), "reads the last round's step, which carried another group"),
    ],
)
@without_type_checks()
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_may_stand_in_a_chain_and_a_group():
    assert chain(PowerSGD()).reads == Turns(PowerSGD(), ("*",)).reads == {"start", "before"}
