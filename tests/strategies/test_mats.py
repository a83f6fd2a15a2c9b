"""MaTS beside SciPy's conjugate gradients on the matrix written out, and beside the rules that it leads to."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Fisher, MaTS, Mean, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import statistics

SPACE = Space((Slot("m.lora_A", (2, 9), "lora_A"), Slot("m.lora_B", (5, 2), "lora_B"), Slot("m.score", (3, 4), "head")))
METRICS = ["fisher", "gram", "both", "kronecker"]


def cohort(clients):
    draw = np.random.default_rng(clients)
    deltas = torch.from_numpy(draw.standard_normal((clients, SPACE.numel))).float()
    return [
        Update(d, float(w), statistics(draw, SPACE)) for d, w in zip(deltas, draw.uniform(1, 9, clients), strict=True)
    ]


def matrix(update, slot, metric):
    """n_k C_k of one slot, written out."""
    if slot.role == "lora_B" and metric != "fisher":
        gram = update.statistics["gram"].reshape(2, 2).double().numpy()
        if metric == "kronecker":
            fisher = SPACE.view(update.statistics["fisher"], slot.name).double().numpy()
            return update.weight * np.kron(np.diag(fisher.sum(1)), gram / np.trace(gram))
        return update.weight * np.kron(np.eye(slot.shape[0]), gram)
    if metric == "gram":
        return update.weight * np.eye(slot.numel)
    return update.weight * np.diag(SPACE.view(update.statistics["fisher"], slot.name).double().reshape(-1).numpy())


def system(updates, slot, metric):
    matrices = [matrix(u, slot, metric) for u in updates]
    deltas = [SPACE.view(u.delta, slot.name).double().reshape(-1).numpy() for u in updates]
    start = np.average(deltas, axis=0, weights=[u.weight for u in updates])
    return sum(matrices), sum(m @ x for m, x in zip(matrices, deltas, strict=True)), start


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("clients", [2, 7])
def test_each_iterate_is_scipys(metric, iterations, clients):
    updates = cohort(clients)
    found = SPACE.tensors(MaTS(iterations, metric).merge(updates, Context(SPACE)))
    for slot in SPACE.slots:
        a, b, start = system(updates, slot, metric)
        expected, _ = cg(a, b, x0=start, maxiter=iterations, rtol=0, atol=1e-12)
        assert np.allclose(found[slot.name].reshape(-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("clients", "metric"), [*((n, m) for n in (1, 3) for m in METRICS), (128, "both")])
@without_type_checks()
def test_run_to_the_end_it_solves_the_system(metric, clients):
    updates = cohort(clients)
    found = SPACE.tensors(MaTS(80, metric).merge(updates, Context(SPACE)))
    for slot in SPACE.slots:
        a, b, _ = system(updates, slot, metric)
        assert np.linalg.norm(a @ found[slot.name].reshape(-1).numpy() - b) < 1e-5 * np.linalg.norm(b)


def test_run_to_the_end_it_is_fisher_merging():
    updates = cohort(6)
    expected = Fisher(1e-30, False).merge(updates, Context(SPACE))
    assert torch.allclose(MaTS(80).merge(updates, Context(SPACE)), expected, atol=1e-3)
    assert not torch.allclose(MaTS(2).merge(updates, Context(SPACE)), expected, atol=1e-3)


def test_where_nothing_is_known_the_mean_stands():
    updates = cohort(4)
    for u in updates:
        u.statistics["fisher"][:7] = 0
        u.statistics["gram"].zero_()
    mean = Mean().merge(updates, Context(SPACE))
    assert torch.allclose(MaTS(20).merge(updates, Context(SPACE))[:7], mean[:7])
    assert torch.allclose(MaTS(20, "gram").merge(updates, Context(SPACE)), mean)


def test_factors_are_the_fisher_information_where_gradients_and_inputs_are_apart():
    """E[(g z^T) (g z^T)^T] of each row's own g, independent of z: its diagonal and its blocks, from samples."""
    draw = np.random.default_rng(0)
    g, z = draw.standard_normal((200_000, 5)) * np.arange(1, 6), draw.standard_normal((200_000, 2)) @ [[1, 2], [0, 1]]
    outer = (g[:, :, None] * z[:, None, :]).reshape(-1, 10)
    whole = outer.T @ outer / len(g)
    fisher = torch.zeros(SPACE.numel)
    SPACE.view(fisher, "m.lora_B").copy_(torch.from_numpy(np.diag(whole).reshape(5, 2).copy()))
    given = {"fisher": fisher, "gram": torch.from_numpy(z.T @ z / len(z)).float().reshape(-1)}
    found = matrix(Update(torch.zeros(SPACE.numel), 1.0, given), SPACE.slots[1], "kronecker")
    assert np.linalg.norm(found - whole) < 0.02 * np.linalg.norm(whole)
    assert np.linalg.norm(np.diag(np.diag(whole)) - whole) > 0.3 * np.linalg.norm(whole)


def test_tiny_and_huge_statistics_solve_the_same_system():
    updates = cohort(5)
    expected = MaTS(6).merge(updates, Context(SPACE))
    for factor in (1e-30, 1e30):
        scaled = [Update(u.delta, u.weight, {"fisher": u.statistics["fisher"] * factor}) for u in updates]
        assert torch.allclose(MaTS(6).merge(scaled, Context(SPACE)), expected, rtol=1e-4, atol=1e-5)


def test_it_declares_what_it_reads():
    assert (
        MaTS(3).passes == 5
        and MaTS(3, "both").needs == MaTS(3, "kronecker").needs == {"fisher", "gram"}
        and MaTS(3, "gram").needs == {"gram"}
    )
    with pytest.raises(ValueError, match="expected an update with the statistic 'gram'"):
        MaTS(3, "gram").merge([Update(u.delta) for u in cohort(2)], Context(SPACE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaTS(0), r"iterations must lie in \[1, 10000\], got 0"),
        (lambda: MaTS(20, "kfac"), "metric must be 'fisher', 'gram', 'both' or 'kronecker', got 'kfac'"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
