"""TIES by head, as PEFT has it, and as the formulas of its authors, of mergekit and of FusionBench have it."""

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Fold, Mean, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, merged, updates

SHAPES = {"layer.lora_A": (3, 17), "layer.lora_B": (29, 3), "head": (2, 5, 7), "bias": (11,)}
LAYERS = Space(tuple(Slot(name, shape, "lora") for name, shape in SHAPES.items()))
METHOD = {"sum": "total", "count": "frequency"}
ELECTIONS = [TIES(trim="none", elect=e, aggregate=a) for e in ("sum", "count") for a in ("mean", "margin")]
several = pytest.mark.parametrize("clients", [1, 2, 5, 8, 128])
both_elections = pytest.mark.parametrize("elect", ["sum", "count"])


def cohort(clients, seed=0):
    """Layers of very different lengths, and weights."""
    draw = np.random.default_rng((clients, seed))
    scales = np.repeat([1.0, 0.1, 9.0, 3.0], [slot.numel for slot in LAYERS.slots])
    x = (draw.standard_normal((clients, LAYERS.numel)) * scales).astype(np.float32)
    return x.astype(np.float64), draw.uniform(1, 100, clients)


def ours(strategy, x, weights=None):
    weights = np.ones(len(x)) if weights is None else weights
    rows = [Update(torch.from_numpy(row).float(), float(w)) for row, w in zip(x, weights, strict=True)]
    return strategy.merge(rows, Context(LAYERS)).double().numpy()


def by_slot(x, merge):
    parts = np.split(x, LAYERS.bounds[1:-1], axis=1)
    return np.concatenate([merge(part) for part in parts])


def by_mergekit(x, n, density, normalize=True):
    """Its formula: the k largest, an election of weighted deltas that gives a tie to +1, over agreeing weights."""
    trimmed = np.zeros_like(x)
    for row, out in zip(x, trimmed, strict=True):
        kept = np.argsort(-np.abs(row))[: int(density * row.size)]
        out[kept] = row[kept]
    weighted = n[:, None] * trimmed
    gamma = np.where(weighted.sum(0) >= 0, 1, -1)
    agree = np.sign(weighted) == gamma
    total = (n[:, None] * agree).sum(0)
    return (weighted * agree).sum(0) / np.where(total > 0, total, 1) ** normalize


def by_the_authors(x, density, merge):
    """One threshold for all; a tied election goes to the side that more coordinates are on; over a count."""
    below = x.shape[1] - int(density * x.shape[1])
    trimmed = np.where(np.abs(x) >= np.sort(np.abs(x), 1)[:, below - 1 : below], x, 0)
    gamma = np.sign(trimmed.sum(0))
    gamma = np.where(gamma == 0, np.sign(gamma.sum()), gamma)
    agree = np.where(gamma > 0, trimmed > 0, trimmed < 0)
    total = (trimmed * agree).sum(0)
    return total if merge == "sum" else total / np.maximum(agree.sum(0), 1)


@several
@both_elections
@pytest.mark.parametrize("density", [0.2, 0.22, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_peft_is_pefts_ties(clients, elect, density, weighted):
    x, n = cohort(clients)
    n = n / n.sum() if weighted else np.ones(clients)
    found = ours(TIES(density, elect=elect, weights="peft"), x, n)

    def theirs(part):
        return merge_utils.ties(
            [torch.from_numpy(row) for row in part], torch.from_numpy(n), density, METHOD[elect]
        ).numpy()

    tied = by_slot(x, lambda part: tied_by_peft(part, density, elect))
    assert np.allclose(found[~tied], by_slot(x, theirs)[~tied], rtol=1e-6, atol=0)
    assert not found[tied].any() and not tied.all()


def tied_by_peft(part, density, elect):
    left = torch.stack([merge_utils.prune(torch.from_numpy(row), density, "magnitude") for row in part])
    return ((left if elect == "sum" else left.sign()).sum(0) == 0).numpy()


@several
@pytest.mark.parametrize("density", [0.2, 0.3])
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_mergekit_is_mergekits_formula(clients, density, normalize):
    x, n = cohort(clients)
    found = ours(TIES(density, aggregate="mean" if normalize else "sum"), x, n)
    expected = by_slot(x, lambda part: by_mergekit(part, n, density, normalize))
    assert np.allclose(found, expected, rtol=1e-6, atol=0)


@several
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_global_and_unweighted_is_the_authors_formula(clients, density):
    x, n = cohort(clients)
    one_more = (int(density * LAYERS.numel) + 1) / LAYERS.numel
    found = ours(TIES(one_more, "global", weights="reference"), x, n)
    assert np.allclose(found, by_the_authors(x, density, "mean"), rtol=1e-6, atol=0)


@several
def test_a_sum_is_fusionbenchs(clients):
    x, n = cohort(clients)
    one_more = (int(0.2 * LAYERS.numel) + 1) / LAYERS.numel
    found = ours(TIES(one_more, "global", aggregate="sum", weights="reference", scale=0.3), x, n)
    assert np.allclose(found, 0.3 * by_the_authors(x, 0.2, "sum"), rtol=1e-6, atol=0)


def test_the_four_rules_of_this_name_differ():
    x, n = cohort(8)
    shares = n / n.sum()
    slot, whole, total, peft = (
        ours(strategy, x, shares)
        for strategy in (
            TIES(),
            TIES(trim="global", weights="reference"),
            TIES(aggregate="sum", weights="reference"),
            TIES(weights="peft"),
        )
    )
    assert (np.sign(slot) != np.sign(whole)).mean() > 0.05
    assert np.linalg.norm(total) > 1.5 * np.linalg.norm(slot)
    assert np.linalg.norm(peft) < 0.3 * np.linalg.norm(slot)
    assert (np.sign(slot) != np.sign(peft)).mean() > 0.01
    assert np.allclose(ours(TIES(weights="peft"), x, shares), ours(TIES(weights="peft"), x, n) / n.sum(), rtol=1e-6)


def test_one_threshold_for_all_starves_what_is_small():
    x, _ = cohort(8)
    kept = {trim: np.split(ours(TIES(trim=trim), x) != 0, LAYERS.bounds[1:-1])[1].mean() for trim in ("slot", "global")}
    assert LAYERS.slots[1].name == "head" and kept["global"] < 0.1 < 0.5 < kept["slot"]


def by_the_formula(x, n, elect, aggregate):
    """Yadav et al., 2023, section 3, with weights in election and merge, coordinate by coordinate."""
    out = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        votes = n * x[:, j] if elect == "sum" else n * np.sign(x[:, j])
        gamma = np.sign(votes.sum())
        agree = np.sign(x[:, j]) == gamma
        if gamma and agree.any():
            over = {"mean": n[agree].sum(), "margin": n.sum(), "sum": 1.0}[aggregate]
            out[j] = (n[agree] * x[agree, j]).sum() / over
    return out


@pytest.mark.parametrize("aggregate", ["mean", "margin", "sum"])
@both_elections
@pytest.mark.parametrize("clients", [1, 2, 4, 9])
def test_a_weighted_election_is_the_formula(elect, aggregate, clients):
    draw = np.random.default_rng(clients)
    x = np.round(draw.standard_normal((clients, LAYERS.numel)) * 3)
    n = draw.integers(1, 5, clients).astype(float)
    expected = by_the_formula(x, n, elect, aggregate)
    assert np.array_equal(ours(TIES(trim="none", elect=elect, aggregate=aggregate), x, n), expected.astype(np.float32))
    if clients > 1 and elect == "sum":
        assert ((n[:, None] * x).sum(0) == 0).any()


@pytest.mark.parametrize("strategy", [*ELECTIONS, TIES(), TIES(weights="peft")], ids=repr)
def test_a_tied_election_makes_no_step(strategy):
    x = torch.linspace(-2, 2, SPACE.numel)
    assert not merged(strategy, [Update(x, 3.0), Update(-x, 3.0)]).any()
    assert torch.equal(merged(strategy, [Update(x, 3.0), Update(-x, 3.0), Update(0 * x, 99.0)]), 0 * x)


def test_an_election_by_head():
    space = Space((Slot("a", (4,), "head"),))
    rows = [[4.0, 1.0, -1.0, 0.0], [-1.0, 1.0, -1.0, 0.0], [-1.0, -3.0, 0.0, 2.0]]
    sum_mean, sum_margin, count_mean, count_margin = (
        merged(s, [Update(torch.tensor(row)) for row in rows], space).tolist() for s in ELECTIONS
    )
    assert sum_mean == [4.0, -3.0, -1.0, 2.0]
    assert count_mean == [-1.0, 1.0, -1.0, 2.0]
    assert sum_margin == pytest.approx([4 / 3, -1.0, -2 / 3, 2 / 3])
    assert count_margin == pytest.approx([-2 / 3, 2 / 3, -2 / 3, 2 / 3])


@pytest.mark.parametrize("trim", ["slot", "global", "none"])
def test_a_trim_by_head(trim):
    space = Space((Slot("a", (4,), "head"), Slot("b", (1, 2), "head"), Slot("c", (), "head"), Slot("d", (0,), "head")))
    x = torch.tensor([1.0, -9.0, 2.0, -2.0, 8.0, 7.0, 0.5])
    left = {
        "slot": [0.0, -9.0, 2.0, -2.0, 8.0, 0.0, 0.5],  # two of four, and what ties; one of two; one of one
        "global": [0.0, -9.0, 2.0, -2.0, 8.0, 7.0, 0.0],
        "none": x.tolist(),
    }
    assert merged(TIES(0.5, trim), [Update(x)], space).tolist() == left[trim]


@pytest.mark.parametrize("trim", ["slot", "global"])
def test_at_least_one_value_is_kept_and_all_is_all(trim):
    x = updates(1)[0].delta
    kept = [slot.numel > 0 for slot in SPACE.slots]
    found = merged(TIES(1e-9, trim), [Update(x)])
    assert [bool(found[a:b].any()) for a, b in zip(SPACE.bounds, SPACE.bounds[1:], strict=False)] == kept or (
        trim == "global" and int((found != 0).sum()) == 1
    )
    assert torch.equal(merged(TIES(1.0, trim), [Update(x)]), x)


def test_a_ternary_update_passes_a_trim_by_slot_as_it_is():
    codec = Ternary(density=0.6)
    sent = codec.planes(codec.encode(updates(1)[0].delta, SPACE, Sender()), SPACE, Sender())
    assert torch.equal(merged(TIES(0.2), [Update(sent)]), sent.dense())
    assert not torch.equal(merged(TIES(0.2, "global"), [Update(sent)]), sent.dense())


def test_a_tree_of_sums_is_flat_to_the_bit_and_a_tree_of_merges_is_another_rule():
    draw = np.random.default_rng(0)
    x = np.round(draw.standard_normal((100, SPACE.numel)) * 2.0**16) / 2.0**16
    rows = [Update(torch.from_numpy(row).float()) for row in x]
    strategy, ctx = TIES(0.2), Context(SPACE)
    root = Fold(strategy, ctx)
    for i in range(0, 100, 10):
        branch = Fold(strategy, ctx)
        branch.accumulate(*rows[i : i + 10])
        root.merge(branch)
    flat = strategy.merge(rows, ctx)
    assert torch.equal(root.finalize(), flat)
    middle = [Update(strategy.merge(rows[i : i + 10], ctx)) for i in range(0, 100, 10)]
    for again in (TIES(0.2), TIES(trim="none")):
        assert float((again.merge(middle, ctx) - flat).norm() / flat.norm()) > 0.2


def test_on_ternary_updates_of_one_scale_the_size_of_the_majority_is_in_the_margin_only():
    x = np.sign(np.random.default_rng(0).standard_normal((5, LAYERS.numel))) * 0.5
    mean, margin = (ours(TIES(trim="none", aggregate=a), x) for a in ("mean", "margin"))
    assert set(mean.tolist()) == {-0.5, 0.5}
    assert set(np.abs(margin).tolist()) == {float(np.float32(0.5 * k / 5)) for k in (3, 4, 5)}


def test_without_a_trim_one_client_is_its_mean_and_a_scale_is_a_factor():
    cohort = updates(7)
    assert torch.equal(merged(TIES(trim="none"), cohort[:1]), merged(Mean(), cohort[:1]))
    assert torch.allclose(merged(TIES(scale=-3.0), cohort), -3 * merged(TIES(), cohort), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TIES(0.0), r"density must lie in \(0, 1\], got 0.0"),
        (lambda: TIES(float("nan")), r"density must lie in \(0, 1\], got nan"),
        (lambda: TIES(trim="layer"), "trim must be 'slot', 'global' or 'none', got 'layer'"),
        (lambda: TIES(elect="total"), "elect must be 'sum' or 'count', got 'total'"),
        (lambda: TIES(aggregate="all"), "aggregate must be 'mean', 'sum' or 'margin', got 'all'"),
        (lambda: TIES(weights="none"), "weights must be 'mergekit', 'reference' or 'peft', got 'none'"),
        (lambda: TIES(scale=float("inf")), "scale must be finite, got inf"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
