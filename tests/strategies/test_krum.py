"""Krum, Multi-Krum and Bulyan as their papers write them, distance by distance."""

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.space import Slot, Space
from fedpeft.strategies import Bulyan, Context, Krum, Mean, Update
from fedpeft.strategies.krum import squared_distances
from tests.strategies.examples import SPACE, updates


def rows(cohort):
    return np.stack([u.delta.double().numpy() for u in cohort])


def krum_scores(x, byzantine):
    n = len(x)
    squared = [[float(((a - b) ** 2).sum()) for b in x] for a in x]
    return [sum(sorted(d for j, d in enumerate(squared[i]) if j != i)[: max(0, n - byzantine - 2)]) for i in range(n)]


def krum(x, byzantine, keep):
    return x[sorted(np.argsort(krum_scores(x, byzantine), kind="stable")[:keep])].mean(axis=0)


def bulyan(x, byzantine):
    left, chosen, first = list(range(len(x))), [], krum_scores(x, byzantine)
    while len(chosen) < len(x) - 2 * byzantine:
        scores = krum_scores(x[left], byzantine)
        best = min(range(len(left)), key=lambda i: (scores[i], first[left[i]]))
        chosen.append(left.pop(best))
    keep = len(chosen) - 2 * byzantine
    merged = []
    for column in x[sorted(chosen)].T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))
        merged.append(np.mean(nearest[:keep]))
    return np.array(merged)


def close(found, expected):
    return np.allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("clients", [5, 9, 10, 40, 128])
@pytest.mark.parametrize("keep", [1, 3])
def test_krum_is_the_papers(clients, keep):
    for byzantine in {0, 1, min((clients - 3) // 2, clients - keep)}:
        cohort = updates(clients)
        assert close(Krum(byzantine, keep).merge(cohort, Context(SPACE)), krum(rows(cohort), byzantine, keep))


@pytest.mark.parametrize("clients", [3, 7, 11, 12, 40])
def test_bulyan_is_the_papers(clients):
    for byzantine in {0, (clients - 3) // 4}:
        cohort = updates(clients)
        assert close(Bulyan(byzantine).merge(cohort, Context(SPACE)), bulyan(rows(cohort), byzantine))


def test_krum_by_hand():
    """Of 0, 1, 3, 4 and 100 with f = 1 each looks at its two nearest: sums of squares 10, 5, 5, 10 and more."""
    ctx = Context(Space((Slot("a", (1,), "head"),)))
    cohort = [Update(torch.tensor([float(v)]), 1.0 + v) for v in (0, 1, 3, 4, 100)]
    assert Krum(1).merge(cohort, ctx).tolist() == [1.0]
    assert Krum(1, keep=2).merge(cohort, ctx).tolist() == [2.0]
    assert Krum(1, keep=4).merge(cohort, ctx).tolist() == [2.0]


def test_bulyan_takes_the_coordinate_of_an_accepted_update_away():
    """Six at (i, 0) and one at (2, 9): the last is near enough to be selected, and its 9 still counts for nothing."""
    ctx = Context(Space((Slot("a", (2,), "head"),)))
    cohort = [Update(torch.tensor([100.0 * i, 0.0])) for i in range(6)] + [Update(torch.tensor([250.0, 9.0]))]
    x = rows(cohort)
    assert np.argsort(krum_scores(x, 1))[0] == 6
    found = Bulyan(1).merge(cohort, ctx)
    assert found[1] == 0.0 and 0 < found[0] < 500


def test_a_tie_in_bulyan_is_no_matter_of_sign():
    ctx = Context(Space((Slot("a", (1,), "head"),)))
    cohort = [Update(torch.tensor([v])) for v in (-2.0, -1.0, -1.0, 0.0, 1.0, 1.0, 2.0)]
    assert abs(float(Bulyan(1).merge(cohort, ctx))) < 1e-7


@pytest.mark.parametrize("clients", [9, 31])
def test_bit_planes_are_merged_as_what_they_stand_for(clients):
    codec = Ternary(density=0.4)
    parts = [codec.encode(u.delta, SPACE, Sender()) for u in updates(clients)]
    planes, dense = ([Update(read(p, SPACE, Sender())) for p in parts] for read in (codec.planes, codec.decode))
    ctx = Context(SPACE)
    x = rows(dense)
    expected = ((x[:, None] - x[None]) ** 2).sum(-1)
    assert np.allclose(squared_distances(planes, ctx), expected, rtol=1e-5, atol=1e-5 * expected.max())
    for rule in (Krum(2, keep=4), Bulyan(1)):
        assert torch.allclose(rule.merge(planes, ctx), rule.merge(dense, ctx), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [Krum(3), Krum(3, keep=9), Bulyan(2)])
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_no_hostile_update_is_believed(rule, size):
    cohort = updates(12)
    for i in range(rule.byzantine):
        cohort[4 * i] = Update(cohort[0].delta * size, 1e9)
    honest = torch.stack([u.delta for i, u in enumerate(cohort) if u.weight != 1e9])
    found = rule.merge(cohort, Context(SPACE))
    assert (found >= honest.amin(0)).all() and (found <= honest.amax(0)).all()
    assert Mean().merge(cohort, Context(SPACE)).norm() > 100 * found.norm()


@pytest.mark.parametrize(
    ("rule", "least"),
    [(Krum(0), 3), (Krum(2), 7), (Krum(2, keep=5), 7), (Krum(2, keep=6), 8), (Bulyan(0), 3), (Bulyan(2), 11)],
)
def test_the_least_number_is_the_papers(rule, least):
    assert rule.least == least
    rule.merge(updates(least), Context(SPACE))
    with pytest.raises(ValueError, match=rf"merges at least {least} updates, got {least - 1}"):
        rule.merge(updates(least - 1), Context(SPACE))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="byzantine must be at least 0, got -1"):
        Krum(-1)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Krum(1, keep=0)
    with pytest.raises(ValueError, match="byzantine must be at least 0, got -2"):
        Bulyan(-2)
