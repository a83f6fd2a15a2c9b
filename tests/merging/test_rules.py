"""What strategies of a run mean for whole adapters: factors, ranks, and which slots they take for changes."""

import json

import pytest
import torch

from fedpeft.errors import SpaceError
from fedpeft.merging import merge_adapters, stack_adapters
from fedpeft.merging.rules import check_space, check_usable, doubtful
from fedpeft.strategies import (
    TIES,
    ClipNorm,
    Consensus,
    Context,
    FlexLoRA,
    GeometricMedian,
    IsoC,
    KnOTS,
    Mean,
    RankAllocation,
    RankVote,
    Scaled,
    SubspaceStep,
    Update,
    by_slot,
    parse,
)
from fedpeft.strategies.wrapping import After
from tests.merging.made import METHODS, changed, check_equal, combined, lora, make, mean_of, products
from tests.strategies.examples import EXAMPLES, SPACE, updates

EVERY_B = "*.lora_*B*"
FACTOR_OF_B = by_slot({EVERY_B: Scaled(Mean(), 3.0)}, default=Mean())
SUM_OF_B = by_slot({EVERY_B: TIES(trim="none", aggregate="sum")}, default=TIES(trim="none"))


@pytest.fixture(scope="module")
def embedded(base, tmp_path_factory):
    """Adapters with the LoRA of an embedding, whose factors have other names."""
    folder, config = tmp_path_factory.mktemp("embedded"), lora(target_modules=["embed_tokens", "q_proj", "down_proj"])
    return [make(base, folder / name, config, seed) for seed, name in enumerate("ab")]


def times(factor, found):
    return {name: factor * product for name, product in found.items()}


@pytest.mark.parametrize("factor", [-1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    "inside",
    [FlexLoRA(), SubspaceStep(), KnOTS(0.5), IsoC(FlexLoRA()), by_slot({"*.lora_*": FlexLoRA()}, default=Mean())],
    ids=repr,
)
def test_a_factor_around_products_is_that_of_the_product(base, three, tmp_path, inside, factor):
    merge_adapters(three, inside, [1, 2, 3]).save(tmp_path / "m")
    scaled = merge_adapters(three, Scaled(inside, factor), [1, 2, 3])
    scaled.save(tmp_path / "n")
    check_equal(products(base, tmp_path / "n"), times(factor, products(base, tmp_path / "m")))
    assert scaled.how == repr(Scaled(inside, factor)) == repr(parse(scaled.how))


def test_a_factor_is_found_in_groups_and_in_others_factors(base, three, tmp_path):
    strategy = by_slot({"*.q_proj.*": Scaled(Scaled(FlexLoRA(), 2.0), -3.0)}, default=SubspaceStep())
    merge_adapters(three[:1], strategy).save(tmp_path / "m")
    wanted = products(base, three[0])
    check_equal(
        products(base, tmp_path / "m"), {n: (-6.0 if n.endswith("q_proj") else 1.0) * p for n, p in wanted.items()}
    )


def test_a_factor_around_products_negates_an_embedding_too(base, embedded, tmp_path):
    merge_adapters(embedded[:1], Scaled(FlexLoRA(), -1.0)).save(tmp_path / "m")
    check_equal(products(base, tmp_path / "m"), times(-1.0, products(base, embedded[0])))


@pytest.mark.parametrize(
    ("strategy", "factor"),
    [(FACTOR_OF_B, 3.0), (SUM_OF_B, 3.0), (Scaled(Mean(), 3.0), 9.0), (TIES(trim="none", aggregate="sum"), 9.0),
     (by_slot({EVERY_B: Scaled(Mean(), -1.0)}, default=Mean()), -1.0)],
    ids=repr,
)  # fmt: skip
def test_what_rules_on_factors_make_of_equal_products(base, embedded, tmp_path, strategy, factor):
    copies = [embedded[0], changed(embedded[0], peft_version="1"), changed(embedded[0], inference_mode=False)]
    merge_adapters(copies, strategy).save(tmp_path / "m")
    check_equal(products(base, tmp_path / "m"), times(factor, products(base, embedded[0])))


def test_a_difference_is_added_up_by_products(base, three, tmp_path):
    one, other = three[:2]
    merge_adapters([other], by_slot({EVERY_B: Scaled(Mean(), -1.0)}, default=Mean())).save(tmp_path / "minus")
    stack_adapters([one, tmp_path / "minus"]).save(tmp_path / "half")
    merge_adapters([one, tmp_path / "minus"], Scaled(FlexLoRA(rank=8), 2.0)).save(tmp_path / "whole")
    wanted = {name: product - products(base, other)[name] for name, product in products(base, one).items()}
    check_equal(products(base, tmp_path / "half"), times(0.5, wanted))
    check_equal(products(base, tmp_path / "whole"), wanted)


@pytest.mark.parametrize("inside", [FlexLoRA(), SubspaceStep(), IsoC(Mean()), RankAllocation(Mean(), 0.5)], ids=repr)
def test_a_factor_of_the_way_from_a_start_to_factors_is_refused(three, inside):
    with pytest.raises(ValueError, match="leave out the start .* or the factor"):
        merge_adapters(three[1:], ClipNorm(Scaled(inside, 2.0), 9.0), start=three[0])
    merge_adapters(three[1:], Scaled(inside, 1.0), start=three[0])


@pytest.mark.parametrize("weights", [[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
def test_svd_with_weights_as_given_is_pefts(base, three, tmp_path, weights):
    merge_adapters(three, Scaled(FlexLoRA(rank=5), sum(weights)), weights).save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["r"] == 5
    theirs = combined(base, three, tmp_path, weights=weights, combination_type="svd", svd_rank=5)
    check_equal(products(base, tmp_path / "m"), theirs, tolerance=1e-4)


RANK_8 = FlexLoRA(rank=8)


@pytest.mark.parametrize(
    "strategy",
    [Scaled(RANK_8, 1.0), RankAllocation(RANK_8, 1.0), ClipNorm(RANK_8, 1e9), Scaled(RankAllocation(RANK_8, 1.0), 1.0),
     by_slot({"*.q_proj.*": RANK_8}, default=FlexLoRA(rank=9)), by_slot({"*.lora_*": RANK_8}, default=Mean())],
    ids=repr,
)  # fmt: skip
def test_a_rank_inside_another_strategy_is_that_rank(base, three, tmp_path, strategy):
    merged = merge_adapters(three[:2], strategy)
    assert merged.product_error() < 1e-6
    merged.save(tmp_path / "m")
    check_equal(products(base, tmp_path / "m"), mean_of([products(base, folder) for folder in three[:2]], [1, 1]))


def test_equal_singular_values_are_those_of_the_rank_asked_for(base, three, tmp_path):
    merge_adapters(three[:2], IsoC(RANK_8)).save(tmp_path / "m")
    for name, mean in mean_of([products(base, folder) for folder in three[:2]], [1, 1]).items():
        found = torch.linalg.svdvals(products(base, tmp_path / "m")[name])
        assert found[:8].tolist() == pytest.approx([float(torch.linalg.svdvals(mean)[:8].mean())] * 8, rel=1e-4)


def test_layers_without_a_rank_of_their_own_stay_as_they_are(base, three, tmp_path):
    others = TIES(trim="global")
    merged = merge_adapters(three, by_slot({"*.q_proj.*": RANK_8}, default=others))
    plain = merge_adapters(three, by_slot({"*.q_proj.*": Mean()}, default=others)).adapter
    for slot in plain.space.slots:
        if "q_proj" not in slot.name:
            assert torch.equal(
                merged.adapter.space.view(merged.adapter.vector, slot.name), plain.space.view(plain.vector, slot.name)
            )
    merged.save(tmp_path / "m")
    wanted = merged_products(plain)
    found = products(base, tmp_path / "m")
    check_equal({name: found[name] for name in wanted}, wanted)


def merged_products(adapter):
    """B A of all layers but the query's, times the scaling of 2 that all adapters have."""
    tensors = adapter.space.tensors(adapter.vector)
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): 2.0
        * (tensors[name.replace("lora_A", "lora_B")] @ tensors[name]).double()
        for name in tensors
        if name.endswith("lora_A.weight") and "q_proj" not in name
    }


def test_adapters_of_other_ranks_are_merged_where_every_group_goes_by_products(base, mixed, tmp_path):
    merged = merge_adapters(mixed, by_slot({"*.q_proj.*": FlexLoRA(rank=16)}, default=FlexLoRA(rank=24)))
    merged.save(tmp_path / "m")
    check_equal(products(base, tmp_path / "m"), mean_of([products(base, folder) for folder in mixed], [1, 1, 1]))
    with pytest.raises(SpaceError, match="does not fit"):
        merge_adapters(mixed, by_slot({"*.q_proj.*": FlexLoRA()}, default=Mean()))


def test_from_a_start_a_rank_above_is_refused(three):
    with pytest.raises(ValueError, match="a rank of 8, and from a start the adapter keeps its rank, 4"):
        merge_adapters(three[1:], IsoC(RANK_8), start=three[0])
    merge_adapters(three[1:], IsoC(FlexLoRA(rank=2)), start=three[0])


class Noisy(After):
    """Fills components that the strategy inside has left empty."""

    def after(self, merged, ctx):
        return merged + 0.1


def test_components_beyond_the_rank_are_not_lost_in_silence(three):
    with pytest.raises(SpaceError, match=r"has more than the 2 components that FlexLoRA\(rank=...\) asks for"):
        merge_adapters(three, Noisy(FlexLoRA(rank=2)))


@pytest.mark.parametrize(
    ("method", "strategy", "message"),
    [
        ("ia3", KnOTS(), r"KnOTS.* these slots \(ia3_l\) hold no pair of linear factors"),
        ("ia3", IsoC(Mean()), r"IsoC.* hold no pair of linear factors"),
        ("ia3", RankAllocation(Mean()), r"RankAllocation.* hold no pair of linear factors"),
        ("vera", FlexLoRA(), "FlexLoRA.* hold no pair of linear factors"),
        ("vera", IsoC(SubspaceStep()), "SubspaceStep.* hold no pair of linear factors"),
        ("head", by_slot({"lora_B": FlexLoRA()}, default=Mean()), r"these slots \(lora_B\) hold no pair"),
        ("head", by_slot({"nothing": Mean()}, default=Mean()), "pattern 'nothing' fits no slot"),
    ],
)
def test_what_a_strategy_does_not_find_is_told(base, tmp_path, method, strategy, message):
    folders = [make(base, tmp_path / str(seed), METHODS[method], seed) for seed in range(2)]
    with pytest.raises(ValueError, match=message):
        merge_adapters(folders, strategy)


@pytest.mark.parametrize("strategy", [RankVote(), by_slot({"lora_A": RankVote()}, default=Mean())], ids=repr)
def test_scores_are_refused(three, strategy):
    with pytest.raises(ValueError, match=r"merges the scores of a supermask.* such as Mean\(\) or TIES\(\)"):
        merge_adapters(three, strategy)


MORE = [
    IsoC(TIES()), Scaled(Mean(), 1.0), Scaled(TIES(), 1.0), RankAllocation(FlexLoRA(), 0.5),
    RankAllocation(TIES(), 0.5), by_slot({"*.lora_*": Mean()}, default=TIES()),
    by_slot({"*.lora_*": TIES()}, default=Mean()),
]  # fmt: skip
# One step of a median is near it only; and whether a consensus keeps all depends on the adapters at hand.
UNDECIDED = GeometricMedian(iterations=1, epsilon=0.1), Consensus(), Consensus(1.0, 1)


def usable():
    for strategy in [*(example.strategy for example in EXAMPLES), *MORE]:
        if strategy in UNDECIDED:
            continue
        try:
            check_usable(strategy)
            check_space(strategy, SPACE, start=False)
        except ValueError:
            continue
        yield strategy


@pytest.mark.parametrize("strategy", list(usable()), ids=repr)
def test_a_slot_is_doubtful_where_it_matters_to_the_strategy_where_zero_is(strategy):
    """A head that all adapters have moved alike comes out so moved, or is named."""
    head, cohort, shift = "m.score.weight", updates(9), torch.zeros(SPACE.numel)
    SPACE.view(shift, head).fill_(-2.5)
    moved = [Update(update.delta + shift, update.weight) for update in cohort]
    found, wanted = strategy.merge(moved, Context(SPACE)), strategy.merge(cohort, Context(SPACE)) + shift
    same = torch.allclose(SPACE.view(found, head), SPACE.view(wanted, head), atol=1e-5)
    assert same == (head not in doubtful(strategy, SPACE))


def test_each_group_is_asked_for_its_own_slots():
    bias = by_slot({"*.bias": IsoC(TIES())}, default=Mean())
    assert doubtful(by_slot({"*.score.weight": Mean()}, default=bias), SPACE) == ("m.score.bias",)
    assert doubtful(by_slot({"*.score.weight": TIES()}, default=bias), SPACE) == ("m.score.bias", "m.score.weight")


def test_a_trim_by_a_groups_rule_is_named_and_a_mean_is_not(base, three, tmp_path):
    folders = [make(base, tmp_path / str(seed), METHODS["head"], seed) for seed in range(3)]
    head = "base_model.model.lm_head.weight"
    trimmed = merge_adapters(folders, by_slot({"*.lora_*": Mean()}, default=TIES()))
    assert trimmed.doubtful == (head,)
    merged = merge_adapters(folders, IsoC(SubspaceStep()))
    assert merged.doubtful == ()
    mean = merge_adapters(folders, Mean()).adapter
    assert torch.allclose(merged.adapter.space.view(merged.adapter.vector, head), mean.space.view(mean.vector, head))
