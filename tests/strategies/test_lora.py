"""Which slots are LoRA products, with PEFT's own scaling and PEFT's own dense delta."""

import json
import math

import peft
import pytest
import torch
from torch import nn

from fedpeft.adapters import AdaptedModel
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from fedpeft.strategies import Factors, factors, modules
from fedpeft.strategies.lora import rest, scaling
from tests.strategies.examples import SPACE


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 5)
        self.picture, self.score = nn.Conv2d(3, 4, 3), nn.Linear(5, 3)
        self.mixture = nn.Module()
        self.mixture.experts = nn.Parameter(torch.randn(4, 6, 7))

    def forward(self, x):
        return self.score(self.last(self.first(self.words(x))))


def adapted(**config):
    config = {"r": 2, "lora_alpha": 8, "target_modules": ["first", "last"], **config}
    return AdaptedModel(Net(), peft.LoraConfig(**config), "", "net", Stream(0, Purpose.INIT))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"last": 3}, "alpha_pattern": {"first": 5}},
        {"rank_pattern": {"fir.*": 4}, "alpha_pattern": {"l.st": 3}, "use_rslora": True},
    ],
    ids=repr,
)
def test_products_and_scaling_are_pefts(config):
    model = adapted(modules_to_save=["score"], **config)
    vector = torch.randn(model.space.numel)
    model.write(vector)
    found = factors(model.space, vector)
    assert sorted(found) == ["base_model.model.first", "base_model.model.last"]
    for name, pair in found.items():
        layer = model.model.get_submodule(name)
        assert math.isclose(pair.scaling, layer.scaling["default"])
        expected = layer.get_delta_weight("default").double()
        assert torch.allclose(pair.scaling * pair.b @ pair.a, expected, rtol=1e-4, atol=1e-5)
        assert pair.rank == config.get("rank_pattern", {}).get("last" if "last" in name else "fir.*", 2)


def test_what_is_no_product_of_two_slots_is_the_rest():
    model = adapted(target_modules=["words", "first", "picture"], modules_to_save=["score"], use_dora=False)
    assert [m.name for m in modules(model.space)] == ["base_model.model.first"]
    assert {name.removeprefix("base_model.model.") for name in rest(model.space)} == {
        "words.lora_embedding_A", "words.lora_embedding_B", "picture.lora_A.weight", "picture.lora_B.weight",
        "score.weight", "score.bias",
    }  # fmt: skip


def test_dora_magnitudes_are_of_the_rest():
    assert {name.rpartition(".")[2] for name in rest(adapted(use_dora=True).space)} == {"lora_magnitude_vector"}


@pytest.mark.filterwarnings("ignore:.*target_parameters")
def test_experts_that_share_a_pair_are_left_alone():
    many = adapted(target_modules=["first"], target_parameters=["mixture.experts"]).space
    assert [m.name for m in modules(many)] == ["base_model.model.first"]
    assert len(rest(many)) == 2


@pytest.mark.parametrize(
    ("slots", "config"),
    [
        ({"x.lora_B.weight": (7, 2)}, {}),
        ({"x.lora_A.weight": (2, 5), "y.lora_B.weight": (7, 2)}, {}),
        ({"x.lora_A.weight": (2, 5), "x.lora_B.weight": (7, 3)}, {}),
        ({"x.lora_A.weight": (2, 0), "x.lora_B.weight": (7, 2)}, {}),
        ({"x.lora_A": (2, 5), "x.lora_B": (7, 2), "x.lora_E": (2, 1)}, {"peft_type": "ADALORA"}),
        ({"x.lora_A.weight": (2, 5), "x.lora_B.weight": (7, 2)}, {"kasa_config": {"alpha": 1}}),
        ({"x.lora_A.weight": (2, 5), "x.lora_B.weight": (7, 2)}, {"use_bdlora": {"nblocks": 2}}),
    ],
)
def test_no_pair(slots, config):
    space = Space(tuple(Slot(n, s, "lora") for n, s in slots.items()), json.dumps(config))
    assert modules(space) == ()
    assert set(rest(space)) == set(slots)


def test_modules_by_head():
    first, second = modules(SPACE)
    assert (first.name, first.shape, first.rank, first.scaling) == ("m.0", (7, 5), 3, 2.0)
    assert (first.a, first.b, second.name) == ("m.0.lora_A.weight", "m.0.lora_B.weight", "m.1")
    assert rest(SPACE) == ("m.score.bias", "m.score.none", "m.score.weight")
    assert modules(Space((Slot("x.lora_A.weight", (2, 5), ""), Slot("x.lora_B.weight", (7, 2), ""))))[0].scaling == 1.0


def test_the_first_pattern_that_fits_counts():
    patterns = {"lora_alpha": 1, "alpha_pattern": {r"layers\.1\.q": 6, "q": 4}}
    assert scaling(patterns, "base_model.model.layers.1.q", 2) == 3.0
    assert scaling(patterns, "base_model.model.layers.11.q", 2) == 2.0
    assert scaling({"lora_alpha": 9, "use_rslora": True}, "q", 9) == 3.0
    assert scaling({}, "q", 9) == 1.0


def test_factors_are_copies_and_the_config_may_be_another():
    vector = torch.ones(SPACE.numel)
    pair = factors(SPACE, vector, {"lora_alpha": 30})["m.0"]
    pair.b.zero_()
    assert vector.all() and pair.scaling == 10.0


def test_rescaled_factors_are_the_same_matrix():
    pair = Factors(torch.randn(4, 2).double(), torch.randn(2, 3).double(), 4.0)
    other = pair.rescaled(0.5)
    assert torch.allclose(4.0 * pair.b @ pair.a, 0.5 * other.b @ other.a)
    assert math.isclose(pair.dot(other), float((4.0 * pair.b @ pair.a).square().sum()))
