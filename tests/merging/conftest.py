"""A tiny model, and folders of adapters of it."""

import pytest

from tests import tiny
from tests.merging.made import lora, make


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny.save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def three(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return [make(base, folder / name, lora(), seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="session")
def mixed(base, tmp_path_factory):
    """Ranks, alphas, patterns and rsLoRA of all kinds."""
    folder = tmp_path_factory.mktemp("mixed")
    patterns = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.self_attn.v_proj": 5}}
    configs = lora(2, 6), lora(4, 4, use_rslora=True), lora(5, 10, lora_dropout=0.1, **patterns)
    return [make(base, folder / f"m{seed}", config, seed) for seed, config in enumerate(configs)]
