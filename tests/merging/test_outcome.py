"""Merged adapters do in PEFT what the definition says, and what PEFT's own merge does."""

import json
import math

import peft
import pytest
import torch
from peft.utils import merge_utils

from fedpeft.adapters import Adapter
from fedpeft.errors import SpaceError
from fedpeft.merging import merge_adapters, stack_adapters
from fedpeft.strategies import (
    DARE,
    OPCM,
    TIES,
    Breadcrumbs,
    FlexLoRA,
    IsoC,
    KnOTS,
    Mean,
    Scaled,
    SubspaceStep,
)
from tests.merging.made import (
    METHODS,
    by_hand,
    changed,
    check_equal,
    combined,
    fresh,
    logits,
    lora,
    make,
    mean_of,
    merged_weights,
    products,
)


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (Mean(), lambda xs: (2 * xs[0] + xs[1] + xs[2]) / 4),
        (Scaled(Mean(), 0.5), lambda xs: (2 * xs[0] + xs[1] + xs[2]) / 8),
        (
            TIES(density=0.5, weights="reference"),
            lambda xs: merge_utils.ties(xs, torch.ones(3), 0.5),
        ),
    ],
    ids=["mean", "half the mean", "ties"],
)
def test_the_merged_model_says_what_hand_merged_weights_say(base, three, tmp_path, strategy, rule):
    merged = merge_adapters(three, strategy, [2, 1, 1])
    merged.save(tmp_path / "m")
    wanted = logits(by_hand(base, merged_weights(three, rule)))
    assert torch.allclose(logits(peft.PeftModel.from_pretrained(fresh(base), tmp_path / "m")), wanted, atol=1e-5)
    assert not torch.allclose(logits(fresh(base)), wanted, atol=1e-2)
    again = Adapter.load(tmp_path / "m")
    assert again.space == merged.adapter.space
    assert torch.equal(again.vector, merged.adapter.vector)


def test_linear_is_pefts_with_its_square_roots(base, three, tmp_path):
    weights = [2.0, 1.0, 0.5]
    roots = [math.sqrt(w) for w in weights]
    merge_adapters(three, Scaled(Mean(), sum(roots)), roots).save(tmp_path / "m")
    theirs = combined(base, three, tmp_path, weights=weights, combination_type="linear")
    check_equal(products(base, tmp_path / "m"), theirs)


def test_shares_in_pefts_linear_make_n_times_the_mean_of_factors(base, three, tmp_path):
    merge_adapters(three, Mean()).save(tmp_path / "m")
    theirs = combined(base, three, tmp_path, weights=[1 / 3] * 3, combination_type="linear")
    check_equal({name: 3 * delta for name, delta in products(base, tmp_path / "m").items()}, theirs)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize(("elect", "method", "density"), [("sum", "total", 0.5), ("count", "frequency", 1.0)])
def test_ties_is_pefts_with_its_square_roots(base, three, tmp_path, elect, method, density):
    weights = [2.0, 1.0, 0.5]
    roots = [math.sqrt(w) for w in weights]
    merge_adapters(three, TIES(density=density, weights="peft", elect=elect), roots).save(tmp_path / "m")
    how = {"combination_type": "ties", "density": density, "majority_sign_method": method}
    check_equal(products(base, tmp_path / "m"), combined(base, three, tmp_path, weights=weights, **how))


@pytest.mark.parametrize("weights", [[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
def test_magnitude_prune_is_pefts_with_its_square_roots(base, three, tmp_path, weights):
    roots = [math.sqrt(w) for w in weights]
    merge_adapters(three, Breadcrumbs(Scaled(Mean(), sum(roots)), 0.5, gamma=0.0), roots).save(tmp_path / "m")
    theirs = combined(base, three, tmp_path, weights=weights, combination_type="magnitude_prune", density=0.5)
    check_equal(products(base, tmp_path / "m"), theirs)


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_svd_is_pefts(base, three, tmp_path, rank):
    weights = [2.0, 1.0, 0.5]
    merge_adapters(three, FlexLoRA(rank=rank), weights).save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["r"] == rank
    shares = [w / sum(weights) for w in weights]
    theirs = combined(base, three, tmp_path, weights=shares, combination_type="svd", svd_rank=rank)
    check_equal(products(base, tmp_path / "m"), theirs, tolerance=1e-4)


def test_cat_as_a_sum_is_pefts(base, three, tmp_path):
    merge_adapters(three, Scaled(FlexLoRA(rank=12), 3.0)).save(tmp_path / "m")
    theirs = combined(base, three, tmp_path, weights=[1.0] * 3, combination_type="cat")
    check_equal(products(base, tmp_path / "m"), theirs)


def test_cat_is_pefts(base, three, tmp_path):
    stack_adapters(three, [2, 1, 0.5]).save(tmp_path / "m")
    shares = [w / 3.5 for w in (2, 1, 0.5)]
    check_equal(products(base, tmp_path / "m"), combined(base, three, tmp_path, weights=shares, combination_type="cat"))


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_stack_of_any_ranks_is_the_mean_of_products(base, mixed, tmp_path, turn):
    weights, mixed = [3.0, 1.0, 2.0], mixed[turn:] + mixed[:turn]
    merged = stack_adapters(mixed, weights)
    merged.save(tmp_path / "m")
    wanted = mean_of([products(base, folder) for folder in mixed], weights)
    check_equal(products(base, tmp_path / "m"), wanted, tolerance=1e-6)
    model = peft.PeftModel.from_pretrained(fresh(base), tmp_path / "m")
    assert torch.allclose(logits(model), logits(by_hand(base, wanted)), atol=1e-5)
    config = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (11, 11)
    assert sorted(config["rank_pattern"].values()) == [9, 9]
    assert merged.product_error() < 1e-6
    assert Adapter.load(tmp_path / "m").space == merged.adapter.space


@pytest.mark.parametrize("rank", [1, 3, 8, None])
def test_flexlora_of_any_ranks_is_the_cut_mean(base, mixed, tmp_path, rank):
    merged = merge_adapters(mixed, FlexLoRA(rank=rank), [3.0, 1.0, 2.0])
    merged.save(tmp_path / "m")
    wanted = mean_of([products(base, folder) for folder in mixed], [3.0, 1.0, 2.0])
    for name, matrix in wanted.items():
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        k = rank or (4 if name.endswith("q_proj") else 5)  # by itself each layer's highest
        wanted[name] = (u[:, :k] * s[:k]) @ v[:k]
    check_equal(products(base, tmp_path / "m"), wanted, tolerance=1e-4)
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["r"] == (rank or 5)


@pytest.mark.parametrize("strategy", [FlexLoRA(), KnOTS(0.4), SubspaceStep(), IsoC(FlexLoRA())], ids=repr)
def test_strategies_of_products_do_not_mind_how_a_product_is_written(base, three, tmp_path, strategy):
    stack_adapters(three[1:2]).save(tmp_path / "b")  # the same product with alpha in A, and another alpha
    ours = products(base, three[1])
    check_equal(products(base, tmp_path / "b"), ours, tolerance=1e-6)
    merge_adapters(three, strategy).save(tmp_path / "m")
    merge_adapters([three[0], tmp_path / "b", three[2]], strategy).save(tmp_path / "n")
    check_equal(products(base, tmp_path / "n"), products(base, tmp_path / "m"), tolerance=1e-3)


def test_with_a_start_the_changes_are_merged(three):
    start, *others = [Adapter.load(folder).vector for folder in three]
    merged = merge_adapters(three[1:], TIES(density=0.25), start=three[0])
    space = merged.adapter.space
    deltas = [space.tensors(one - start) for one in others]
    for name, tensor in space.tensors(merged.adapter.vector).items():
        k = tensor.numel() // 4
        kept = [torch.where(d[name].abs() >= d[name].abs().flatten().topk(k)[0][-1], d[name], 0) for d in deltas]
        agree = torch.stack([one * sum(kept).sign() > 0 for one in kept])
        wanted = (torch.stack(kept) * agree).sum(0) / agree.sum(0).clamp(min=1)
        assert torch.allclose(tensor, space.view(start, name) + wanted, atol=1e-6)
    with pytest.raises(SpaceError, match="b does not fit .*a"):
        merge_adapters([three[0]], Mean(), start=changed(three[1], lora_alpha=16))


@pytest.mark.parametrize("name", METHODS)
def test_any_method_is_merged_and_loaded(base, tmp_path, name):
    folders = [make(base, tmp_path / str(seed), METHODS[name], seed) for seed in range(3)]
    merged = merge_adapters(folders, Mean(), [1, 1, 2])
    merged.save(tmp_path / "m")
    loaded = peft.PeftModel.from_pretrained(fresh(base), tmp_path / "m")
    state = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    ours = [peft.utils.load_peft_weights(str(folder), device="cpu") for folder in folders]
    for key, tensor in state.items():
        assert torch.allclose(tensor, (ours[0][key] + ours[1][key] + 2 * ours[2][key]) / 4, atol=1e-6), key
    assert (merged.product_error() is None) == (name in ("ia3", "vera", "prompt"))


def test_a_heads_mean_and_products_without_loss_in_one(base, tmp_path):
    configs = lora(2, 4, modules_to_save=["lm_head"]), lora(3, 4, modules_to_save=["lm_head"])
    folders = [make(base, tmp_path / str(seed), config, seed) for seed, config in enumerate(configs)]
    merged = stack_adapters(folders, [1, 3]).adapter
    heads = [one.space.view(one.vector, "base_model.model.lm_head.weight") for one in map(Adapter.load, folders)]
    assert torch.allclose(
        merged.space.view(merged.vector, "base_model.model.lm_head.weight"), (heads[0] + 3 * heads[1]) / 4, atol=1e-6
    )


def test_the_same_seed_draws_the_same(three):
    one, two, other = (merge_adapters(three, DARE(Mean(), 0.5), seed=seed).adapter.vector for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_order_counts_where_it_does(three):
    there, back = (merge_adapters(folders, OPCM()).adapter.vector for folders in (three, three[::-1]))
    assert not torch.allclose(there, back)
