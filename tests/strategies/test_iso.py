"""Isotropic merging: equal singular values on the numerical rank, and nothing but products changed."""

import numpy as np
import pytest
import torch

from fedpeft.strategies import Context, Factors, FlexLoRA, IsoC, Mean, SubspaceStep, Update, iso_cts
from tests.codecs.examples import without_type_checks
from tests.strategies.lora_cohorts import cohort, cut, dense, space


@pytest.mark.parametrize("inner", [Mean(), FlexLoRA(), FlexLoRA(2), SubspaceStep()], ids=repr)
@pytest.mark.parametrize("clients", [1, 9])
@pytest.mark.parametrize("anchored", [False, True])
def test_singular_values_are_their_mean_on_the_rank(inner, clients, anchored):
    ctx, updates = cohort(clients, where=space(4, {"m.0": (24, 17), "m.1": (13, 30), "m.2": (3, 9)}))
    if not anchored:
        ctx = Context(ctx.space)
    before, after = (dense(ctx, s.merge(updates, ctx)) for s in (inner, IsoC(inner)))
    for one, other in zip(before, after, strict=True):
        u, s, v = np.linalg.svd(one, full_matrices=False)
        rank = int((s > 1e-5 * s[0]).sum())
        assert rank == min(2 if inner == FlexLoRA(2) else 4, *one.shape)
        assert np.allclose(other, s[:rank].mean() * u[:, :rank] @ v[:rank], atol=1e-5 * s[0])


def test_heads_are_left_as_they_are():
    ctx, updates = cohort(9)
    one, other = Mean().merge(updates, ctx), IsoC(Mean()).merge(updates, ctx)
    for slot in ctx.space.slots:
        same = torch.equal(ctx.space.view(one, slot.name), ctx.space.view(other, slot.name))
        assert same == (slot.role == "head")


def test_a_product_of_nothing_stays_nothing():
    ctx, _ = cohort(1)
    assert not IsoC(Mean()).merge([Update(torch.zeros(ctx.space.numel))], Context(ctx.space)).any()


def test_it_declares_what_is_inside():
    assert IsoC(SubspaceStep()).passes == 2 and IsoC(Mean()).additive and IsoC(Mean()).anchored
    assert not IsoC(FlexLoRA()).additive
    with pytest.raises(TypeError, match="not a function of sums"):
        IsoC(FlexLoRA()).lift(Update(torch.zeros(1)), Context(space()))


def factors_of(clients, rank=4, shape=(20, 15)):
    draw = np.random.default_rng(clients)
    make = lambda *size: torch.from_numpy(draw.standard_normal(size))  # noqa: E731
    return [Factors(make(shape[0], rank), make(rank, shape[1]), 2.0) for _ in range(clients)]


def written(pair):
    return (pair.scaling * pair.b @ pair.a).numpy()


def by_the_algorithm(matrices, rank, own):
    """Marczak et al., 2025: common directions, each task's own outside them, both sides made orthonormal."""
    u, s, v = (part for part in np.linalg.svd(sum(matrices), full_matrices=False))
    common = rank - own * len(matrices)
    us, ss, vs = [u[:, :common]], [s[:common]], [v[:common]]
    for matrix in matrices:
        w = np.linalg.svd(matrix - us[0] @ us[0].T @ matrix, full_matrices=False)
        us.append(w[0][:, :own])
        ss.append(w[1][:own])
        vs.append(w[2][:own])
    p, _, q = np.linalg.svd(np.concatenate(us, 1), full_matrices=False)
    x, _, y = np.linalg.svd(np.concatenate(vs), full_matrices=False)
    return np.concatenate(ss).mean() * (p @ q) @ (x @ y)


@pytest.mark.parametrize(("clients", "rank", "own"), [(2, 10, 1), (3, 12, 1), (2, 15, 2), (2, 8, 1)])
def test_common_and_own_directions_are_the_algorithm(clients, rank, own):
    terms = factors_of(clients)
    whole = min(rank, 4 * clients, 15)
    found = iso_cts(terms, rank, scaling=0.5)
    assert found.scaling == 0.5 and found.rank == whole
    own = round(whole * 0.2 / clients)
    assert np.allclose(written(found), by_the_algorithm([written(t) for t in terms], whole, own), atol=1e-8)
    s = np.linalg.svd(written(found), compute_uv=False)
    assert np.allclose(s[:whole], s[0]) and (len(s) == whole or s[whole] < 1e-9)


def test_without_own_directions_it_is_iso_c_of_the_sum():
    terms = factors_of(5)
    kept = cut(sum(written(t) for t in terms), 6)
    u, s, v = np.linalg.svd(kept)
    expected = s[:6].mean() * u[:, :6] @ v[:6]
    for common in (1.0, 0.8):
        assert np.allclose(written(iso_cts(terms, 6, common)), expected, atol=1e-8)


def outside(found, terms):
    """What share of a result lies outside the rows and the columns of the terms."""
    sides = [t.b for t in terms], [t.a.T for t in terms]
    columns, rows = (torch.linalg.qr(torch.cat(side, 1))[0].numpy() for side in sides)
    x = written(found)
    inside = columns @ (columns.T @ x @ rows) @ rows.T
    return np.linalg.norm(x - inside) / np.linalg.norm(x)


def nothing(term):
    return Factors(torch.zeros_like(term.b), term.a)


@pytest.mark.parametrize(
    ("add", "directions"),
    [
        (lambda term: [term], 9),
        (lambda term: [term, term], 8),
        (lambda term: [nothing(term)], 9),
        (lambda term: [Factors(term.b[:, :1], term.a[:1])], 10),
    ],
    ids=["equal", "three equal", "zero", "one direction"],
)
def test_no_direction_is_made_up_where_clients_agree_or_add_nothing(add, directions):
    """Of ten directions each client has one and the rest is common."""
    term = factors_of(1, rank=10)[0]
    terms = [term, *add(term)]
    found = iso_cts(terms, 10)
    assert outside(found, terms) < 1e-12
    s = np.linalg.svd(written(found), compute_uv=False)
    assert found.rank == int((s > 1e-9 * s[0]).sum()) == directions and np.allclose(s[:directions], s[0])


def test_clients_that_agree_are_one_with_so_many_directions_less():
    term = factors_of(1, rank=10)[0]
    once, twice = (written(iso_cts(terms, 10)) for terms in ([term], [term, term]))
    u, _, v = np.linalg.svd(written(term), full_matrices=False)
    for found, rank in ((once, 10), (twice, 9)):
        top = u[:, :rank] @ v[:rank]
        assert np.allclose(found / np.linalg.norm(found), top / np.linalg.norm(top), atol=1e-9)


def test_nothing_of_all_stays_nothing():
    assert not written(iso_cts([nothing(term) for term in factors_of(3)], 10)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IsoC("Mean()"), "IsoC: strategy must be a strategy, got 'Mean"),
        (lambda: iso_cts(factors_of(2), 0), "rank must be at least 1, got 0"),
        (lambda: iso_cts(factors_of(2), 3, 0.0), r"common must lie in \(0, 1\], got 0.0"),
        (lambda: iso_cts([], 3), "nothing to merge"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
