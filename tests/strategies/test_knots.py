"""KnOTS against its steps on dense matrices."""

import math

import numpy as np
import pytest
import torch

from fedpeft.strategies import Context, FlexLoRA, KnOTS, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.lora_cohorts import cohort, cut, dense, distance, mean_product, space

UNSCALED, SCALED = {"lora_alpha": 4}, {"lora_alpha": 6, "alpha_pattern": {"0": 100}}


def by_the_steps(changes, density, trim):
    """Stoica et al., 2024: [client][layer] dense changes of equal weight to the merged change of every layer."""
    bases, coordinates = [], []
    for layer in zip(*changes, strict=True):
        u, s, v = np.linalg.svd(np.concatenate(layer, 1), full_matrices=False)
        kept = s > 1e-5
        bases.append(u[:, kept])
        coordinates.append(np.split(s[kept, None] * v[kept], len(layer), axis=1))
    groups = [[layer] for layer in coordinates] if trim == "layer" else [coordinates]
    for group in groups:
        for i in range(len(changes)):
            every = np.sort(np.concatenate([np.abs(layer[i]).ravel() for layer in group]))[::-1]
            floor = every[math.ceil(density * len(every)) - 1]
            for layer in group:
                layer[i] = layer[i] * (np.abs(layer[i]) >= floor)
    merged = []
    for u, layer in zip(bases, coordinates, strict=True):
        x = np.stack(layer)
        agree = np.sign(x) * np.sign(x.sum(0)) > 0
        merged.append(u @ ((x * agree).sum(0) / np.maximum(agree.sum(0), 1)))
    return merged


@pytest.mark.parametrize("clients", [1, 2, 5, 12])
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("trim", ["global", "layer"])
@pytest.mark.parametrize("anchored", [False, True])
def test_it_is_the_steps_on_dense_matrices(clients, density, trim, anchored):
    ctx, updates = cohort(clients, where=space(**SCALED))
    updates = [Update(u.delta, 3.0) for u in updates]
    if not anchored:
        ctx = Context(ctx.space)
    start = dense(ctx, torch.zeros(ctx.space.numel))
    changes = [[a - b for a, b in zip(dense(ctx, u.delta), start, strict=True)] for u in updates]
    merged = by_the_steps(changes, density, trim)
    expected = [cut(b + m, 4) for b, m in zip(start, merged, strict=True)]
    assert distance(dense(ctx, KnOTS(density, trim).merge(updates, ctx)), expected) < 1e-5


def test_clients_that_agree_are_their_mean_and_opposites_cancel():
    ctx, (update, *_) = cohort(1, where=space(**UNSCALED))
    zero = Context(ctx.space)
    opposite = update.delta.clone()
    for name in ("m.0.lora_B.weight", "m.1.lora_B.weight"):
        zero.space.view(opposite, name).neg_()
    found = dense(zero, KnOTS(0.3).merge([update, Update(opposite, update.weight)], zero))
    assert max(np.abs(product).max() for product in found) < 1e-12
    same = KnOTS(1.0).merge([update] * 4, zero)
    assert distance(dense(zero, same), dense(zero, update.delta)) < 1e-6


def test_sites_of_disjoint_directions_are_all_kept_where_a_mean_shrinks_them():
    """Two clients whose products share no row and no column: each coordinate has one vote."""
    ctx, _ = cohort(1, where=space(4, {"m.0": (8, 8)}, head=False, **UNSCALED))
    zero, cohorts = Context(ctx.space), []
    for i in range(2):
        delta = torch.zeros(ctx.space.numel)
        ctx.space.view(delta, "m.0.lora_B.weight")[2 * i, 0] = 3.0 + i
        ctx.space.view(delta, "m.0.lora_A.weight")[0, 5 * i] = 1.0
        cohorts.append(Update(delta))
    (found,) = dense(zero, KnOTS(1.0).merge(cohorts, zero))
    (mean,) = mean_product(zero, cohorts)
    assert np.allclose(found, 2 * mean, atol=1e-6)
    (best,) = dense(zero, FlexLoRA().merge(cohorts, zero))
    assert np.allclose(best, mean, atol=1e-6)


@pytest.mark.parametrize("trim", ["global", "layer"])
def test_nothing_but_zeros_and_a_space_without_products(trim):
    ctx, _ = cohort(1)
    zeros = [Update(torch.zeros(ctx.space.numel))] * 3
    assert not KnOTS(trim=trim).merge(zeros, Context(ctx.space)).any()
    assert distance(dense(ctx, KnOTS(trim=trim).merge(zeros, ctx)), dense(ctx, zeros[0].delta)) < 1e-6
    heads = Context(ctx.space.subspace(["m.score.bias"]))
    assert torch.equal(KnOTS(trim=trim).merge([Update(torch.ones(5))] * 2, heads), torch.ones(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KnOTS(0.0), r"density must lie in \(0, 1\], got 0.0"),
        (lambda: KnOTS(2.0), r"density must lie in \(0, 1\], got 2.0"),
        (lambda: KnOTS(trim="slot"), "trim must be 'global' or 'layer', got 'slot'"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
