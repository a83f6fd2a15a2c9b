"""FLTrust as the paper writes it, and what it asks for."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, FLTrust, Mean, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, updates

ROOT = updates(1)[0].delta


def context(root=ROOT):
    return Context(SPACE, told={"root": root})


def fltrust(x, g):
    trust = np.array([max(0.0, row @ g / np.linalg.norm(row) / np.linalg.norm(g)) for row in x])
    sized = np.stack([np.linalg.norm(g) / np.linalg.norm(row) * row for row in x])
    return trust @ sized / trust.sum()


@pytest.mark.parametrize("clients", [2, 10, 128])
def test_it_is_the_papers(clients):
    cohort = [Update(u.delta + ROOT, u.weight) for u in updates(clients)]
    x = np.stack([u.delta.double().numpy() for u in cohort])
    found = FLTrust().merge(cohort, context())
    assert np.allclose(found.numpy(), fltrust(x, ROOT.double().numpy()), rtol=1e-5, atol=1e-6)


def test_by_hand():
    """(3, 0) points with (2, 0) and is brought to its length; (1, 1) by half a right angle; (-9, 0) is not heard."""
    ctx = Context(Space((Slot("a", (2,), "head"),)), told={"root": torch.tensor([2.0, 0.0])})
    cohort = [Update(torch.tensor(row), 5.0) for row in ([3.0, 0.0], [-9.0, 0.0])]
    assert FLTrust().merge(cohort, ctx).tolist() == [2.0, 0.0]
    half = 0.5**0.5
    both = [*cohort, Update(torch.tensor([1.0, 1.0]))]
    expected = [(2 + half * 2 * half) / (1 + half), half * 2 * half / (1 + half)]
    assert np.allclose(FLTrust().merge(both, ctx).tolist(), expected)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_a_long_update_counts_for_no_more_than_one_of_the_roots_length(size):
    cohort = [Update(ROOT + u.delta) for u in updates(7)] + [Update((ROOT + 1) * size, 1e9)] * 3
    assert FLTrust().merge(cohort, context()).norm() <= ROOT.norm() * (1 + 1e-6)
    assert Mean().merge(cohort, context()).norm() > 100 * ROOT.norm()


def test_where_nobody_is_trusted_nothing_moves():
    away = [Update(-ROOT), Update(-7 * ROOT), Update(torch.zeros(SPACE.numel))]
    assert torch.equal(FLTrust().merge(away, context()), torch.zeros(SPACE.numel))
    assert torch.equal(FLTrust().merge(updates(4), context(torch.zeros(SPACE.numel))), torch.zeros(SPACE.numel))


@without_type_checks()
def test_a_trusted_delta_is_asked_for():
    with pytest.raises(ValueError, match=r"needs a trusted delta as `told\['root'\]`"):
        FLTrust().merge(updates(3), Context(SPACE))
    with pytest.raises(ValueError, match=rf"expected a delta of shape \({SPACE.numel},\), got \(3,\)"):
        FLTrust().merge(updates(3), context(torch.ones(3)))
