"""OPCM beside the published algorithm written out with full bases, and what it keeps between sites that join."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from fedpeft.space import Slot, Space
from fedpeft.strategies import OPCM, Context, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, updates

MATRICES = Space(
    (Slot("m.lora_A", (3, 17), "lora_A"), Slot("m.lora_B", (11, 3), "lora_B"), Slot("head", (6, 6), "head"))
)


def as_published(deltas, space, alpha):
    """Tang et al., 2025, with a complete basis on both sides, as in the authors' code."""
    merged, norms, factor = {n: t.double() for n, t in space.tensors(deltas[0]).items()}, [deltas[0].double().norm()], 1
    for delta in deltas[1:]:
        norms.append(delta.double().norm())
        for name, tau in space.tensors(delta).items():
            u, s, vh = torch.linalg.svd(merged[name], full_matrices=True)
            k = int((s.cumsum(0) / s.sum() > alpha).int().argmax())
            projected = u.T @ tau.double() @ vh.T
            projected.diagonal().fill_(0)
            projected[:k, :k] = 0
            merged[name] = factor * merged[name] + u @ projected @ vh
        norm, mean = torch.stack([t.norm() for t in merged.values()]).norm(), sum(norms) / len(norms)
        factor = norm / mean
        merged = {name: tensor / factor for name, tensor in merged.items()}
    return space.flatten({name: tensor.float() for name, tensor in merged.items()}), float(factor)


@pytest.mark.parametrize("clients", [1, 2, 5, 20])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_matrices_are_merged_as_published(clients, alpha):
    cohort = updates(clients, space=MATRICES)
    expected, _ = as_published([u.delta for u in cohort], MATRICES, alpha)
    found = OPCM(alpha).merge(cohort, Context(MATRICES))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_site_that_joins_years_later_finds_all_that_it_needs():
    cohort = updates(7)
    strategy, joined = OPCM(), {}
    for update in cohort:
        joined = load(save(strategy.join(joined, update.delta, SPACE)))
    assert torch.equal(joined["merged"].float(), strategy.merge(cohort, Context(SPACE)))
    assert float(joined["count"]) == 7
    assert all(tensor.dtype == torch.float64 for tensor in joined.values())


def test_joining_changes_nothing_that_was_there():
    one, other = (u.delta for u in updates(2))
    joined = OPCM().join({}, one, SPACE)
    kept = {name: tensor.clone() for name, tensor in joined.items()}
    OPCM().join(joined, other, SPACE)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in joined.items())
    assert torch.equal(one, updates(2)[0].delta)


def test_the_norm_stays_that_of_an_update_and_the_factor_grows_as_a_root():
    joined, norms = {}, []
    for update in updates(40, space=MATRICES):
        joined = OPCM().join(joined, update.delta, MATRICES)
        norms.append(float(update.delta.double().norm()))
        assert float(joined["merged"].norm()) == pytest.approx(np.mean(norms))
    assert 0.6 < float(joined["factor"]) / 40**0.5 < 1.1


def test_of_an_update_that_is_known_nothing_is_news():
    one = updates(1)[0].delta
    joined = OPCM().join(OPCM().join({}, one, SPACE), -3 * one, SPACE)
    for slot in SPACE.slots:
        if len(slot.shape) == 2:
            before, after = SPACE.view(one, slot.name).double(), SPACE.view(joined["merged"], slot.name)
            assert torch.allclose(after, 2 * before, rtol=1e-5, atol=1e-6)


def test_other_slots_keep_the_plain_running_mean():
    cohort = updates(6)
    found = SPACE.view(OPCM().merge(cohort, Context(SPACE)), "m.score.bias")
    assert float(found) == pytest.approx(np.mean([float(SPACE.view(u.delta, "m.score.bias")) for u in cohort]))


def test_directions_beyond_the_rank_of_what_is_merged_are_free():
    space = Space((Slot("a", (4, 5), "lora_A"),))
    first, second = torch.zeros(4, 5), torch.zeros(4, 5)
    first[0, 0] = 3.0
    second[0, 0], second[2, 2], second[1, 3] = 3.0, 1.0, 2.0
    joined = OPCM().join(OPCM().join({}, first.reshape(-1), space), second.reshape(-1), space)
    news = space.view(joined["merged"] * joined["factor"], "a").clone()
    news[0, 0] -= 3.0
    second[0, 0] = 0.0
    assert torch.allclose(news, second.double(), atol=1e-12)


def test_updates_of_nothing_are_counted_and_harm_nothing():
    zero, x = torch.zeros(SPACE.numel), updates(1)[0].delta
    assert not OPCM().merge([Update(zero)] * 3, Context(SPACE)).any()
    found = OPCM().merge([Update(zero), Update(x)], Context(SPACE))
    assert torch.allclose(found, x / 2, rtol=1e-6)
    flat = Space((Slot("a", (3,), "head"),))
    assert OPCM().merge([Update(torch.ones(3)), Update(torch.zeros(3))], Context(flat)).tolist() == [0.5] * 3


def test_order_matters():
    cohort = updates(5)
    one, other = (OPCM().merge(some, Context(SPACE)) for some in (cohort, cohort[::-1]))
    assert not torch.allclose(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
@without_type_checks()
def test_a_wrong_argument_is_named(alpha):
    with pytest.raises(ValueError, match=rf"alpha must lie in \[0, 1\), got {alpha}"):
        OPCM(alpha)
