"""Error feedback with everything that it meets: any codec, clipping inside and out, forgetting, absence."""

import pytest
import torch

from fedpeft.codecs import SRHT, Clip, Codec, Context, ErrorFeedback, Identity, RandomMask, Ternary, TopK, chain
from tests.codecs.examples import LARGE, SPACE, normal, there_and_back, without_type_checks


def deltas(rounds: int) -> list[torch.Tensor]:
    return [normal(SPACE, seed) for seed in range(rounds)]


def through(feedback: ErrorFeedback, rounds: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the server decodes in each round, and the last residual."""
    residual, sent = torch.zeros(SPACE.numel), []
    for number, delta in enumerate(rounds, start=1):
        ctx = Context(5, number, 2)
        parts, residual = feedback.encode(delta, feedback.carry(residual), SPACE, ctx)
        sent.append(feedback.codec.decode(parts, SPACE, ctx))
    return sent, residual


@pytest.mark.parametrize("codec", [Ternary(0.05), TopK(0.05), Ternary(0.05, threshold="global")], ids=repr)
def test_the_residual_of_a_contraction_stays_bounded(codec: Codec) -> None:
    sizes = [float(through(ErrorFeedback(codec), deltas(n))[1].norm()) for n in (25, 50, 100)]
    assert sizes[2] < 1.5 * sizes[1] < 3 * sizes[0]


def test_a_bound_inside_bounds_what_is_sent_and_what_it_cuts_off_comes_later() -> None:
    feedback = ErrorFeedback(chain(Clip(norm=0.5), Identity()))
    big, still = normal(SPACE), [torch.zeros(SPACE.numel)] * 60
    sent, residual = through(feedback, [big, *still])
    assert all(x.norm() <= 0.5 * (1 + 1e-6) for x in sent)
    assert torch.allclose(torch.stack(sent).sum(0), big, atol=1e-4)
    assert residual.norm() < 1e-3


def test_a_bound_outside_bounds_what_goes_in_and_not_what_is_sent() -> None:
    feedback = ErrorFeedback(Ternary(density=0.05), clip=0.5)
    sent, residual = through(feedback, deltas(40))
    assert max(float(x.norm()) for x in sent) > 1.1 * 0.5
    assert torch.stack(sent).sum(0).norm() + residual.norm() <= 2 * 40 * 0.5
    first = through(feedback, [1e6 * normal(SPACE)])
    assert torch.allclose(first[0][0] + first[1], normal(SPACE) * 0.5 / normal(SPACE).norm(), atol=1e-6)


@pytest.mark.parametrize("codec", [RandomMask(0.1, Identity()), SRHT(density=0.05, scale="unbiased")], ids=repr)
def test_what_is_decoded_may_be_longer_than_what_went_in(codec: Codec) -> None:
    bounded = chain(Clip(0.5), codec)
    assert there_and_back(bounded, normal(LARGE), LARGE).norm() > 2 * 0.5


def test_forgetting_bounds_a_residual_that_would_grow() -> None:
    grows = Ternary(density=0.02, scale="norm")
    kept = through(ErrorFeedback(grows), [normal(SPACE)] * 40)[1].norm()
    forgot = through(ErrorFeedback(grows, decay=0.5), [normal(SPACE)] * 40)[1].norm()
    assert forgot < 4 * normal(SPACE).norm() < kept


def test_an_absent_client_forgets_as_one_that_is_there() -> None:
    residual, ctx = normal(SPACE), Context(5, 9, 2)
    feedback, nothing = ErrorFeedback(Ternary(density=0.1), decay=0.9), torch.zeros(SPACE.numel)
    back, _ = feedback.encode(nothing, feedback.carry(residual, missed=7), SPACE, ctx)
    there, _ = feedback.encode(nothing, feedback.carry(0.9**7 * residual), SPACE, ctx)
    assert torch.allclose(*(feedback.codec.decode(parts, SPACE, ctx) for parts in (back, there)))
    assert torch.equal(ErrorFeedback(Identity()).carry(residual, missed=7), residual)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
@without_type_checks()
def test_a_wrong_bound_is_named(clip: float) -> None:
    with pytest.raises(ValueError, match=f"clip must be positive and finite, got {clip}"):
        ErrorFeedback(Identity(), clip=clip)
