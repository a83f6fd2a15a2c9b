"""Any PEFT method federates unchanged, and what is saved is what PEFT loads."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers

from fedpeft import adapters
from fedpeft.adapters import AdaptedModel, Adapter
from fedpeft.errors import ConfigError, SpaceError
from fedpeft.random import Purpose, Stream
from fedpeft.strategies import Context, Mean, Update
from fedpeft.training.models import load_base, weights_hash
from tests import tiny

CLASSIFIERS = {
    "lora": "LoraConfig(r=2, target_modules=['query', 'value'])",
    "lora with bias": "LoraConfig(r=2, target_modules=['query'], bias='lora_only')",
    "dora": "LoraConfig(r=2, target_modules=['query'], use_dora=True)",
    "ia3": "IA3Config(target_modules=['key', 'value'], feedforward_modules=[])",
    "fourierft": "FourierFTConfig(n_frequency=10, target_modules=['query'])",
    "vera": "VeraConfig(r=4, target_modules=['query', 'value'])",
    "core": "PsoftConfig(r=3, psoft_alpha=6, psoft_orth=False, psoft_mag_a=False, psoft_mag_b=False,"
    " target_modules=['query', 'value'])",
    "core on a random basis": "TinyLoraConfig(r=3, u=9, target_modules=['query', 'value'])",
    "prompt tuning": "PromptTuningConfig(num_virtual_tokens=3)",
    "head and pooler": "LoraConfig(r=2, target_modules=['query'], modules_to_save=['classifier', 'pooler'])",
}
TEXTS = {
    "lora": "LoraConfig(r=2, target_modules='all-linear')",
    "ia3": "IA3Config(target_modules=['k_proj', 'v_proj', 'down_proj'], feedforward_modules=['down_proj'])",
    "prompt tuning": "PromptTuningConfig(num_virtual_tokens=3)",
    "prefix tuning": "PrefixTuningConfig(num_virtual_tokens=3)",
    "lora with embeddings": "LoraConfig(r=2, target_modules=['q_proj'], modules_to_save=['lm_head'])",
}
CASES = [("sequence-classification", name, text) for name, text in CLASSIFIERS.items()]
CASES += [("causal-lm", name, text) for name, text in TEXTS.items()]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "sequence-classification": tiny.save_bert(tmp_path_factory.mktemp("bert")),
        "causal-lm": tiny.save_llama(tmp_path_factory.mktemp("llama")),
    }


def adapted(folder: Path, task: str, text: str, seed: int = 0) -> AdaptedModel:
    base = load_base(str(folder), task, tiny.COLOURS, Stream(seed, Purpose.INIT))  # type: ignore[arg-type]
    config = adapters.for_task(adapters.parse_config(text), task)
    return AdaptedModel(base.model, config, base.sha256, base.name, Stream(seed, Purpose.INIT, 1))


def outputs(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[2, 5, 4, 11, 9], [3, 6, 4, 12, 10]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize(("task", "name", "text"), CASES, ids=[f"{task}: {name}" for task, name, _ in CASES])
def test_every_method_reads_writes_and_is_loaded_by_peft(
    bases: dict[str, Path], tmp_path: Path, task: str, name: str, text: str
) -> None:
    model = adapted(bases[task], task, text)
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    assert model.space.numel == trained
    start = model.read()
    vector = start + 0.1 * torch.from_numpy(Stream(1, Purpose.DATA).normal(model.space.numel)).float()
    model.write(vector)
    assert torch.equal(model.read(), vector)
    wanted = outputs(model.model)

    saved = model.adapter(vector)
    saved.save(tmp_path / "adapter")
    kind = {
        "sequence-classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }[task]
    options = {"num_labels": len(tiny.COLOURS)} if task == "sequence-classification" else {}
    fresh = kind.from_pretrained(bases[task], **options)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert torch.allclose(outputs(loaded), wanted, atol=1e-6)

    again = Adapter.load(tmp_path / "adapter", base=model.space.base)
    assert again.space == model.space
    assert torch.equal(again.vector, vector)
    assert again.constants.keys() == saved.constants.keys()


@pytest.mark.parametrize("name", ["core", "core on a random basis", "lora"])
def test_the_mean_of_cores_between_frozen_factors_is_the_mean_of_products(bases: dict[str, Path], name: str) -> None:
    """Fed-SB: what is trained enters a weight once, so nothing is lost to the mean; LoRA's factors come as a pair."""
    model = adapted(bases["sequence-classification"], "sequence-classification", CLASSIFIERS[name])
    space, start, draw = model.space, model.read(), Stream(3, Purpose.DATA)
    deltas = torch.from_numpy(draw.normal(5 * space.numel)).float().view(5, -1)
    cohort = [Update(delta, weight=i + 1.0) for i, delta in enumerate(deltas)]
    merged = start + Mean().merge(cohort, Context(space, start))
    mean = sum(u.weight / 15 * weights(model, start + u.delta) for u in cohort)
    error = float((weights(model, merged) - mean).norm() / mean.norm())
    assert error > 0.1 if name == "lora" else error < 1e-6
    cores = [slot.shape for slot in space.slots if slot.role in ("psoft_R", "tinylora_v")]
    assert cores == {"core": [(3, 3)] * 2, "core on a random basis": [(9,)] * 2, "lora": []}[name]


def weights(model: AdaptedModel, vector: torch.Tensor) -> torch.Tensor:
    """What an adapter adds to the base model's weights, of all layers."""
    model.write(vector)
    layers = [m for m in model.model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    return torch.stack([layer.get_delta_weight("default").detach().double() for layer in layers])


def test_peft_saves_what_we_save(bases: dict[str, Path], tmp_path: Path) -> None:
    model = adapted(bases["sequence-classification"], "sequence-classification", CLASSIFIERS["lora"])
    model.adapter(model.read()).save(tmp_path / "ours")
    model.model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours, theirs = Adapter.load(tmp_path / "ours"), Adapter.load(tmp_path / "theirs")
    assert ours.space == theirs.space
    assert torch.equal(ours.vector, theirs.vector)


def test_the_base_model_is_not_needed_to_save(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(bases["sequence-classification"], "sequence-classification", CLASSIFIERS["vera"])
    model.adapter(model.read()).save(tmp_path / "a")
    read = Adapter.load(tmp_path / "a")
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    monkeypatch.setattr(peft, "get_peft_model", None)
    read.save(tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_same_stream_gives_every_site_the_same_start(bases: dict[str, Path]) -> None:
    first, second = (
        adapted(bases["sequence-classification"], "sequence-classification", CLASSIFIERS["lora"]) for _ in "ab"
    )
    assert torch.equal(first.read(), second.read())
    assert first.space == second.space
    state = torch.random.get_rng_state()
    adapted(bases["sequence-classification"], "sequence-classification", CLASSIFIERS["lora"], seed=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_another_rank_is_refused_by_the_slot_that_differs(bases: dict[str, Path]) -> None:
    task, folder = "sequence-classification", bases["sequence-classification"]
    ours = adapted(folder, task, "LoraConfig(r=2, target_modules=['query'])").space
    theirs = adapted(folder, task, "LoraConfig(r=4, target_modules=['query'])").space
    with pytest.raises(SpaceError, match=r"query\.lora_A\.weight': expected shape \(2, 16\).*got \(4, 16\)"):
        ours.check(theirs)


def test_another_target_is_refused_by_the_slot_that_is_missing(bases: dict[str, Path]) -> None:
    task, folder = "sequence-classification", bases["sequence-classification"]
    ours = adapted(folder, task, "LoraConfig(r=2, target_modules=['query', 'value'])").space
    theirs = adapted(folder, task, "LoraConfig(r=2, target_modules=['query'])").space
    with pytest.raises(SpaceError, match=r"value\.lora_A\.weight'.*expected, but the other adapter has none"):
        ours.check(theirs)


def test_another_scale_is_refused_by_the_setting(bases: dict[str, Path]) -> None:
    task, folder = "sequence-classification", bases["sequence-classification"]
    ours = adapted(folder, task, "LoraConfig(r=2, lora_alpha=4, target_modules=['query'])").space
    theirs = adapted(folder, task, "LoraConfig(r=2, lora_alpha=8, target_modules=['query'])").space
    with pytest.raises(SpaceError, match="'lora_alpha' differs: expected 4, got 8"):
        ours.check(theirs)


def test_another_base_model_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    text = "LoraConfig(r=2, target_modules=['query'])"
    ours = adapted(bases["sequence-classification"], "sequence-classification", text).space
    theirs = adapted(tiny.save_bert(tmp_path, seed=1), "sequence-classification", text).space
    with pytest.raises(SpaceError, match="base models differ"):
        ours.check(theirs)


def test_the_hash_names_the_checkpoint_not_the_fresh_head(bases: dict[str, Path]) -> None:
    folder = str(bases["sequence-classification"])
    hashes = {
        load_base(folder, "sequence-classification", tiny.COLOURS, Stream(s, Purpose.INIT)).sha256 for s in (0, 1)
    }
    assert len(hashes) == 1
    model = transformers.BertModel.from_pretrained(folder)
    with torch.no_grad():
        before = weights_hash(model, set())
        next(iter(model.parameters()))[0, 0] += 1e-3
    assert weights_hash(model, set()) != before


def test_state_that_peft_does_not_save_is_refused(bases: dict[str, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SpaceError, match="is not in PEFT's state dict"):
            adapted(bases["causal-lm"], "causal-lm", "PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True)")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_folders_are_refused(bases: dict[str, Path], tmp_path: Path, file: str) -> None:
    model = adapted(bases["sequence-classification"], "sequence-classification", CLASSIFIERS["lora"])
    model.adapter(model.read()).save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:40])
    with pytest.raises(SpaceError, match="as PEFT writes them"):
        Adapter.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(SpaceError, match="as PEFT writes them"):
        Adapter.load(tmp_path)


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'LoraConfig'"):
        adapters.parse_config("LoarConfig(r=2)")
    with pytest.raises(ConfigError, match="did you mean 'lora_alpha'"):
        adapters.parse_config("LoraConfig(lora_alhpa=2)")


def test_the_saved_config_names_the_model_not_the_folder_it_was_found_in(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = adapted(bases["causal-lm"], "causal-lm", TEXTS["lora"])
    model.adapter(model.read()).save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        bases["causal-lm"]
    )
