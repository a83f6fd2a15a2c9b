"""Adapters that PEFT makes on a tiny model, and what they add to its weights."""

import copy
import json

import peft
import torch
import transformers

from fedpeft.adapters import Adapter

TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(r=4, alpha=8, **more):
    return peft.LoraConfig(**{"r": r, "lora_alpha": alpha, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | more)


METHODS = {
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "dora": lora(use_dora=True),
    "head": lora(modules_to_save=["lm_head"]),
}


def fresh(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base)


def make(base, folder, config, seed):
    """An adapter with random numbers, as PEFT saves it."""
    model = peft.get_peft_model(fresh(base), copy.deepcopy(config))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def changed(folder, **settings):
    """A copy of an adapter with other settings."""
    copy = folder.parent / f"{folder.name}-{'-'.join(map(str, settings))}" / folder.name
    copy.mkdir(parents=True, exist_ok=True)
    (copy / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | settings))
    return copy


def products(base, folder):
    """What an adapter adds to each weight, as PEFT works it out."""
    model = peft.PeftModel.from_pretrained(fresh(base), folder)
    return {
        name: module.get_delta_weight("default").detach().double()
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def mean_of(found, weights):
    return {name: sum(w * one[name] for w, one in zip(weights, found, strict=True)) / sum(weights) for name in found[0]}


def check_equal(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(
            found[name].double(), wanted[name], rtol=0, atol=tolerance * float(wanted[name].abs().max())
        )


def logits(model):
    ids = torch.tensor([[2, 5, 4, 11, 9], [3, 6, 4, 12, 10]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def by_hand(base, added):
    """The base model with its weights changed."""
    model = fresh(base)
    with torch.no_grad():
        for name, delta in added.items():
            model.get_submodule(name).weight += delta.float()
    return model


def merged_weights(three, rule):
    """B A of what a rule makes of all As and all Bs, times the scaling."""
    tensors = [Adapter.load(folder).space.tensors(Adapter.load(folder).vector) for folder in three]
    made = {name: rule([one[name] for one in tensors]) for name in tensors[0]}
    found = {}
    for name in made:
        if name.endswith("lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[layer] = 2.0 * (made[name.replace("lora_A", "lora_B")] @ made[name]).double()
    return found


def combined(base, three, tmp_path, **how):
    """What PEFT's own merge adds to each weight."""
    model = peft.PeftModel.from_pretrained(fresh(base), three[0], adapter_name="a")
    for name, folder in zip("bc", three[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    model.add_weighted_adapter(["a", "b", "c"], adapter_name="m", **how)
    return {
        name: module.get_delta_weight("m").detach().double()
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
