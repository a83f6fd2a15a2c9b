"""What may be merged with what, and the sentence that says why not."""

import math
from pathlib import Path

import peft
import pytest
import torch

from fedpeft.adapters import Adapter
from fedpeft.errors import FedpeftError, SpaceError
from fedpeft.merging import merge_adapters, stack_adapters
from fedpeft.strategies import (
    TIES,
    ClipNorm,
    Fisher,
    FlexLoRA,
    FLTrust,
    IsoC,
    Krum,
    MaTS,
    Mean,
    Scaled,
)
from tests.merging.made import (
    changed,
    fresh,
    lora,
    make,
)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_dropout": 0.3}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": False}, {"task_type": None},
        {"inference_mode": False}, {"peft_version": "0.6.0"}, {"target_modules": "model.*(q|v|down)_proj"},
        {"megatron_core": None}, {"qalora_group_size": None}, {"revision": "main"}, {"modules_to_save": ["x"]},
        {"base_model_name_or_path": None},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_no_account_do_not_hinder(three, settings):
    wanted = merge_adapters(three[:2], Mean()).adapter
    for folders in ([three[0], changed(three[1], **settings)], [changed(three[0], **settings), three[1]]):
        found = merge_adapters(folders, Mean()).adapter
        assert torch.equal(found.vector, wanted.vector)
        assert found.config["task_type"] == "CAUSAL_LM"
        assert found.config["base_model_name_or_path"] == wanted.config["base_model_name_or_path"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": 16}, "'lora_alpha' differs: expected 8, got 16; adapters of other ranks .*FlexLoRA"),
        ({"use_rslora": True}, "'use_rslora' differs"),
        ({"alpha_pattern": {"q_proj": 1}}, "'alpha_pattern' differs"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' differs: expected None, got 'pissa'$"),
        ({"bias": "all"}, "'bias' differs"),
        ({"peft_type": "ADALORA"}, "'peft_type' differs"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', but .*a has 'CAUSAL_LM'; merge adapters of one task"),
        ({"base_model_name_or_path": "other"}, "base_model_name_or_path is 'other', but .*--base"),
        ({"revision": "v2"}, "revision is 'v2', but .* has 'v1'"),
    ],
    ids=str,
)
def test_settings_that_count_are_named(three, settings, message):
    first = changed(three[0], revision="v1")
    with pytest.raises(SpaceError, match=message):
        merge_adapters([first, changed(three[1], **settings)], Mean())


def test_one_base_model_of_two_names_is_given_one(three):
    other = changed(three[1], base_model_name_or_path="other", revision="v2")
    merged = merge_adapters([three[0], other], Mean(), base="org/model")
    assert merged.adapter.config["base_model_name_or_path"] == "org/model"
    assert merged.adapter.config["revision"] is None


def test_other_layers_are_named_and_cannot_be_merged_by_products(base, three, tmp_path):
    fewer = make(base, tmp_path / "d", lora(target_modules=["q_proj"]), 5)
    for merge in (lambda f: merge_adapters(f, Mean()), lambda f: merge_adapters(f, FlexLoRA()), stack_adapters):
        with pytest.raises(SpaceError, match="d does not fit .*a: slot .*down_proj.* expected, but") as caught:
            merge([three[0], fewer])
        assert "FlexLoRA" not in str(caught.value)


def test_another_rank_says_what_to_do(mixed):
    for strategy in (Mean(), TIES(), Krum(0), IsoC(Mean())):
        with pytest.raises(SpaceError, match=r"expected shape \(2, 24\).*FlexLoRA\(rank=8\).*--exact"):
            merge_adapters(mixed, strategy)
    with pytest.raises(SpaceError, match="expected shape"):
        merge_adapters(mixed[:1], FlexLoRA(), start=mixed[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"use_dora": True}, "lora_magnitude_vector.* is no product of two matrices"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A.* is no product"),
    ],
    ids=str,
)
def test_what_is_more_than_a_product_keeps_its_rank(base, tmp_path, more, message):
    folders = [make(base, tmp_path / f"f{seed}", lora(**more), seed) for seed in range(2)]
    merge_adapters(folders, Mean()).save(tmp_path / "m")
    peft.PeftModel.from_pretrained(fresh(base), tmp_path / "m")
    with pytest.raises(SpaceError, match=message):
        stack_adapters(folders)


def test_a_beginning_that_changed_the_base_model_keeps_its_rank(three):
    folders = [changed(folder, init_lora_weights="pissa") for folder in three]
    assert merge_adapters(folders, Mean()).adapter.config["init_lora_weights"] == "pissa"
    with pytest.raises(SpaceError, match="'pissa'.*the rank cannot change"):
        stack_adapters(folders)


def test_frozen_projections_must_be_the_same(base, tmp_path):
    folders = [
        make(base, tmp_path / str(key), peft.VeraConfig(r=4, target_modules=["q_proj"], projection_prng_key=key), 1)
        for key in range(2)
    ]
    with pytest.raises(SpaceError, match="vera_A.* differs"):
        merge_adapters(folders, Mean())


@pytest.mark.parametrize("strategy", [Fisher(), MaTS(), ClipNorm(Fisher(), 1.0), FLTrust()], ids=repr)
def test_what_needs_data_is_refused_before_a_folder_is_read(strategy):
    with pytest.raises(ValueError, match=r"needs '(fisher|root)' of somebody's data"):
        merge_adapters([Path("nowhere")], strategy)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "expected 3 weights"),
        ([1, 0, 1], "positive and finite, got 0"),
        ([1, math.inf, 1], "got inf"),
        ([1e308, 1e308, 1], "sum of weights must be a finite number of usual size, got inf; give numbers around 1"),
        ([1e-320, 1e-320, 1e-320], "sum of weights must be a finite number of usual size, got .*e-320"),
    ],
)
def test_weights_are_checked(three, weights, message):
    for merge in (lambda: merge_adapters(three, Mean(), weights), lambda: stack_adapters(three, weights)):
        with pytest.raises(ValueError, match=message):
            merge()
    with pytest.raises(ValueError, match="at least one"):
        merge_adapters([], Mean(), [])


def test_too_few_adapters_for_a_rule(three):
    with pytest.raises(ValueError, match="at least 5"):
        merge_adapters(three, Krum(1))


def test_bad_folders_are_named(base, three, tmp_path):
    with pytest.raises(SpaceError, match="nowhere: expected adapter_config.json"):
        merge_adapters([three[0], Path("nowhere")], Mean())
    bad = changed(three[0], peft_version="list")
    (bad / "adapter_config.json").write_text("[]")
    with pytest.raises(SpaceError, match="a: expected an adapter as PEFT writes it"):
        merge_adapters([bad], Mean())
    adapter = Adapter.load(three[0])
    adapter.vector[-1] = math.nan
    adapter.save(tmp_path / "nan")
    with pytest.raises(SpaceError, match="nan: 'base_model.*' holds a value that is not finite"):
        merge_adapters([three[0], tmp_path / "nan"], Mean())
    adapter.vector[-1] = 1e38
    adapter.save(tmp_path / "huge")
    with pytest.raises(FedpeftError, match="makes values that are not finite"):
        merge_adapters([tmp_path / "huge"], Scaled(Mean(), 1e3))


def test_weights_in_another_form_are_not_opened_and_the_way_out_leads_out(base, three, tmp_path):
    model = peft.PeftModel.from_pretrained(fresh(base), three[1])
    model.save_pretrained(tmp_path / "b", safe_serialization=False)
    assert not (tmp_path / "b" / "adapter_model.safetensors").exists()
    with pytest.raises(
        SpaceError, match="b: adapter_model.bin is pickled, and opening a pickle can run any code.*PEFT"
    ):
        merge_adapters([three[0], tmp_path / "b"], Mean())
    loaded = peft.PeftModel.from_pretrained(fresh(base), tmp_path / "b")
    loaded.save_pretrained(tmp_path / "b", safe_serialization=True)
    merged = merge_adapters([three[0], tmp_path / "b"], Mean()).adapter
    assert torch.equal(merged.vector, merge_adapters(three[:2], Mean()).adapter.vector)
    (tmp_path / "b" / "adapter_model.bin").unlink()
    (tmp_path / "b" / "adapter_model.safetensors").rename(tmp_path / "b" / "adapter_model-00001-of-00001.safetensors")
    with pytest.raises(SpaceError, match="b: the weights are in pieces, such as adapter_model-00001-of-00001.safeten"):
        merge_adapters([three[0], tmp_path / "b"], start=three[1], strategy=Mean())


@pytest.mark.parametrize("alpha", [None, "8", [8], math.inf], ids=repr)
@pytest.mark.parametrize("merge", [lambda f: merge_adapters(f, FlexLoRA()), stack_adapters])
def test_an_alpha_that_is_no_number_is_named(three, alpha, merge):
    with pytest.raises(SpaceError, match="a: lora_alpha of base_model.* must be a finite number, got .*adapter_config"):
        merge([changed(three[0], lora_alpha=alpha, alpha_pattern={}), three[1]])


def test_a_pattern_that_cannot_be_read_is_named(three):
    for patterns in ([1], {"(": 2}):
        with pytest.raises(SpaceError, match="a: expected an adapter as PEFT writes it"):
            merge_adapters([changed(three[0], alpha_pattern=patterns), three[1]], Mean())
