"""Product merges against dense float64: a client's basis changes nothing, and no adapter is nearer to the mean."""

import numpy as np
import pytest
import torch

from fedpeft.strategies import (
    Context,
    Factors,
    FlexLoRA,
    KnOTS,
    Mean,
    SubspaceStep,
    Update,
    best_mean,
    factors,
    modules,
    product_error,
    stacked,
    with_residual,
)
from fedpeft.strategies.factors import shares_of, spectrum_of_sum
from tests.codecs.examples import without_type_checks
from tests.strategies.lora_cohorts import cohort, cut, dense, distance, mean_product, space

BY_PRODUCT = [FlexLoRA(), SubspaceStep(), KnOTS(1.0)]
every_product = pytest.mark.parametrize("strategy", BY_PRODUCT, ids=repr)
WIDE = {"m.0": (24, 17), "m.1": (13, 30), "m.2": (3, 9), "m.3": (1, 1)}


def merged_products(strategy, ctx, updates):
    return dense(ctx, strategy.merge(updates, ctx))


@every_product
@pytest.mark.parametrize("het", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("copies", [1, 5])
def test_one_client_in_gives_its_own_product_back(strategy, het, copies):
    ctx, (update,) = cohort(1, het, where=space(4, WIDE))
    assert distance(merged_products(strategy, ctx, [update] * copies), dense(ctx, update.delta)) < 1e-6


@every_product
@pytest.mark.parametrize("clients", [3, 20])
def test_neither_order_nor_basis_changes_the_product(strategy, clients):
    ctx, plain = cohort(clients, 0.3)
    order = np.random.default_rng(0).permutation(clients)
    straight = [Update(u.delta, float(i % 3 + 1)) for i, u in enumerate(plain)]
    for other in ([straight[i] for i in order], _turned(ctx, straight)):
        assert distance(merged_products(strategy, ctx, other), merged_products(strategy, ctx, straight)) < 1e-5


def _turned(ctx, updates):
    """The same products, each client's factors times a well-conditioned matrix of its own and its inverse."""
    draw, found = np.random.default_rng(7), []
    for update in updates:
        adapter = ctx.adapter(update).double()
        for module in modules(ctx.space):
            g = torch.from_numpy(np.linalg.qr(draw.standard_normal((module.rank, module.rank)))[0]) * draw.uniform(
                0.3, 3
            )
            b, a = ctx.space.view(adapter, module.b), ctx.space.view(adapter, module.a)
            b.copy_(b @ g)
            a.copy_(torch.linalg.inv(g) @ a)
        found.append(Update((adapter - ctx.start.double()).float(), update.weight))
    return found


@every_product
def test_what_is_in_no_product_is_averaged_by_weight(strategy):
    ctx, updates = cohort(9)
    found, expected = strategy.merge(updates, ctx), Mean().merge(updates, ctx)
    for name in ("m.score.bias", "m.score.weight"):
        assert torch.allclose(ctx.space.view(found, name), ctx.space.view(expected, name), rtol=1e-6)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("clients", [1, 2, 9, 128])
@pytest.mark.parametrize("rank", [None, 1, 2, 9])
def test_flexlora_is_the_best_approximation_of_the_dense_mean(clients, rotated, rank):
    ctx, updates = cohort(clients, 1.0, rotated, space(4, WIDE))
    expected = [cut(mean, min(rank or 4, 4)) for mean in mean_product(ctx, updates)]
    assert distance(merged_products(FlexLoRA(rank), ctx, updates), expected) < 1e-6


@pytest.mark.parametrize("strategy", [FlexLoRA(), SubspaceStep()], ids=repr)
def test_factors_are_balanced_and_lie_as_near_to_the_start_as_balanced_ones_can(strategy):
    ctx, updates = cohort(9, 0.1)
    adapter = ctx.adapter(Update(strategy.merge(updates, ctx)))
    again = strategy.merge([Update(torch.zeros(ctx.space.numel))], Context(ctx.space, adapter))
    assert again.abs().max() < 1e-5
    for module in modules(ctx.space):
        pair, start = module.factors(ctx.space, adapter), module.factors(ctx.space, ctx.start)
        assert torch.allclose(pair.b.T @ pair.b, pair.a @ pair.a.T, rtol=1e-4, atol=1e-4)
        near = pair.b.T @ start.b + pair.a @ start.a.T
        assert torch.allclose(near, near.T, atol=1e-4) and torch.linalg.eigvalsh(near).min() > 0


def test_ordered_factors_have_the_largest_components_first_and_the_starts_signs():
    ctx, updates = cohort(9)
    moved = FlexLoRA(ordered=True).merge(updates, ctx)
    assert distance(dense(ctx, moved), merged_products(FlexLoRA(), ctx, updates)) < 1e-6
    for module in modules(ctx.space):
        pair = module.factors(ctx.space, ctx.adapter(Update(moved)))
        start = module.factors(ctx.space, ctx.start)
        values = torch.linalg.svdvals(pair.b @ pair.a)[: module.rank]
        lengths = pair.b.norm(dim=0) * pair.a.norm(dim=1)
        assert torch.allclose(lengths[: len(values)], values, rtol=1e-4, atol=1e-5 * float(values[0]))
        assert ((pair.b.T @ start.b + pair.a @ start.a.T).diagonal() > -1e-5).all()


def test_without_a_start_the_sign_is_fixed():
    ctx, updates = cohort(9)
    found = factors(ctx.space, FlexLoRA().merge(updates, Context(ctx.space)))
    for pair in found.values():
        assert (pair.b.gather(0, pair.b.abs().argmax(0, keepdim=True)) > 0).all()
        gram = pair.b.T @ pair.b
        assert torch.allclose(gram, pair.a @ pair.a.T, rtol=1e-4, atol=1e-4)
        assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-4 * float(gram.max()))


@pytest.mark.parametrize("strategy", [FlexLoRA(), SubspaceStep(), KnOTS()], ids=repr)
def test_directions_that_nobody_has_stay_trainable(strategy):
    """As PEFT begins: B is zero, A is random; then only one direction is trained."""
    ctx, _ = cohort(1)
    start, first = ctx.start.clone(), torch.zeros(ctx.space.numel)
    for module in modules(ctx.space):
        ctx.space.view(start, module.b).zero_()
        ctx.space.view(first, module.b)[:, 0] = 1.0
    ctx = Context(ctx.space, start)
    assert strategy.merge([Update(torch.zeros(ctx.space.numel))] * 2, ctx).abs().max() < 1e-6
    adapter = ctx.adapter(Update(strategy.merge([Update(first)] * 2, ctx)))
    for module in modules(ctx.space):
        assert torch.linalg.matrix_rank(module.factors(ctx.space, adapter).a, rtol=1e-3) == module.rank


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("het", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("shapes", [{"m.0": (96, 64), "m.1": (64, 128)}, {"m.0": (256, 256)}])
def test_a_subspace_step_is_nearly_the_best(shapes, het, rotated):
    ctx, updates = cohort(20, het, rotated, space(8, shapes))
    best, step = (product_error(updates, s.merge(updates, ctx), ctx) for s in (FlexLoRA(), SubspaceStep()))
    assert best - 1e-7 <= step <= best + 0.004


def test_a_subspace_step_by_the_formula():
    ctx, updates = cohort(7)
    found = merged_products(SubspaceStep(), ctx, updates)
    for module, mean, product in zip(modules(ctx.space), mean_product(ctx, updates), found, strict=True):
        pseudo = np.linalg.pinv(module.factors(ctx.space, ctx.start).a.numpy())
        q, _ = np.linalg.qr(mean @ pseudo)
        assert np.allclose(product, q @ q.T @ mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", [0, 2])
def test_a_start_of_less_rank_is_filled_by_chance(known):
    ctx, updates = cohort(20, 0.05, where=space(8, {"m.0": (96, 64)}))
    poor = ctx.start.clone()
    ctx.space.view(poor, "m.0.lora_A.weight")[known:] = 0
    moved = [Update(u.delta + ctx.start - poor, u.weight) for u in updates]
    errors = [
        product_error(moved, SubspaceStep().merge(moved, c), c) for c in (Context(ctx.space, poor, s) for s in (1, 2))
    ]
    assert errors[0] != errors[1] and max(errors) < 0.2
    assert product_error(updates, SubspaceStep().merge(updates, Context(ctx.space)), Context(ctx.space)) < 2


def hetero(clients, ranks, shape=(11, 19)):
    draw = np.random.default_rng(clients)
    out, width = shape
    made = [(draw.standard_normal((out, r)), draw.standard_normal((r, width)), 16 / r) for r in ranks[:clients]]
    return [Factors(torch.from_numpy(b), torch.from_numpy(a), s) for b, a, s in made]


def written(pair):
    return (pair.scaling * pair.b @ pair.a).numpy()


RANKS = [2, 5, 1, 8, 4]


@pytest.mark.parametrize("clients", [1, 2, 5])
@pytest.mark.parametrize("scaling", [1.0, 4.0])
def test_stacking_is_exact_whatever_the_ranks(clients, scaling):
    terms, weights = hetero(clients, RANKS), [1.0, 2.0, 3.0, 4.0, 5.0][:clients]
    found = stacked(terms, weights, scaling)
    mean = np.average([written(t) for t in terms], axis=0, weights=weights)
    assert (found.rank, found.scaling) == (sum(RANKS[:clients]), scaling)
    assert np.allclose(written(found), mean, rtol=1e-12, atol=1e-12)
    for rank in (1, 3, 30):
        best = best_mean(terms, weights, rank, scaling)
        assert (best.rank, best.scaling) == (rank, scaling)
        assert np.allclose(written(best), cut(mean, rank), rtol=1e-10, atol=1e-10)


def test_one_clients_stack_is_its_adapter_and_equal_adapters_are_averaged():
    """A mean of equal adapters is that adapter, not the first client's times its share."""
    (one,) = hetero(1, RANKS)
    assert torch.equal(stacked([one], [7.0], one.scaling).a, one.a)
    ctx, updates = cohort(4)
    assert not torch.allclose(
        Mean().merge(updates, ctx), updates[0].delta * (updates[0].weight / sum(u.weight for u in updates))
    )
    for merge in (lambda t: with_residual(t, [1.0, 2.0, 3.0], 0), lambda t: stacked(t, [1.0, 2.0, 3.0])):
        assert np.allclose(written(merge([one] * 3)), written(one))


def test_averaged_factors_are_those_of_all_clients():
    ctx, updates = cohort(4, where=space(head=False))
    weights = [u.weight for u in updates]
    lists = [factors(ctx.space, ctx.adapter(u)) for u in updates]
    merged = factors(ctx.space, ctx.adapter(Update(Mean().merge(updates, ctx))))
    for name, pair in merged.items():
        mean = with_residual([found[name] for found in lists], weights, 0)
        assert torch.allclose(pair.b, mean.b, atol=1e-5) and torch.allclose(pair.a, mean.a, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 4, 12, 20])
def test_the_residual_is_the_best_of_its_rank(rank):
    terms, weights = hetero(4, [4] * 4), [1.0, 2.0, 3.0, 4.0]
    found = with_residual(terms, weights, rank)
    mean = np.average([written(t) for t in terms], axis=0, weights=weights)
    b, a = (np.average([getattr(t, n).numpy() for t in terms], axis=0, weights=weights) for n in "ba")
    residual = mean - terms[0].scaling * b @ a
    assert found.rank == 4 + rank
    assert np.allclose(written(found), terms[0].scaling * b @ a + cut(residual, rank), atol=1e-10)
    assert (np.linalg.norm(written(found) - mean) < 1e-9) == (rank >= 11)


@pytest.mark.parametrize("shape", [(1, 1), (2, 40), (40, 2), (9, 9)])
@pytest.mark.parametrize("terms", [1, 3, 20])
def test_the_spectrum_of_a_sum_is_that_of_the_dense_sum(shape, terms):
    pairs, shares = hetero(terms, [3] * terms, shape), list(np.random.default_rng(1).standard_normal(terms))
    whole = sum(share * written(pair) for share, pair in zip(shares, pairs, strict=True))
    found = spectrum_of_sum(pairs, shares)
    assert np.allclose((found.u * found.s) @ found.v, whole, atol=1e-10)
    s = np.linalg.svd(whole, compute_uv=False)
    assert np.allclose(found.s[: len(s)], s[: len(found.s)], atol=1e-10)
    assert found.rank == np.linalg.matrix_rank(whole)


def test_nothing_has_no_rank():
    zero = Factors(torch.zeros(4, 2).double(), torch.ones(2, 5).double())
    found = spectrum_of_sum([zero, zero], [0.5, 0.5])
    pair = found.balanced(2)
    assert found.rank == 0 and not pair.a.any() and not pair.b.any()
    assert pair.a.shape == (2, 5) and pair.b.shape == (4, 2)


def test_shares_add_up_whatever_their_size():
    assert shares_of([1.0, 3.0]) == [0.25, 0.75]
    assert shares_of([1e308, 1e308]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlexLoRA(0), "rank must be at least 1, or None for the adapter's, got 0"),
        (lambda: best_mean(hetero(2, RANKS), [1.0, 1.0], 0), "rank must be at least 1, got 0"),
        (lambda: stacked([], []), "weights must be positive and finite, and at least one, got"),
        (lambda: stacked(hetero(2, RANKS), [1.0, 0.0]), "weights must be positive and finite"),
        (lambda: with_residual(hetero(2, RANKS), [1.0, 1.0], 1), "one rank and one scaling, .*can be stacked"),
        (lambda: with_residual(hetero(1, RANKS), [1.0], -1), "rank must be at least 0, got -1"),
    ],
)  # fmt: skip
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
