"""Each row of a head is the mean over those who moved it."""

import peft
import pytest
import torch
from torch import nn

from fedpeft.adapters import AdaptedModel, Adapter
from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Mean, SeenMean, Update

SPACE = Space(
    (Slot("score.bias", (3,), "head"), Slot("score.weight", (3, 2), "head"), Slot("m.lora_A.weight", (1, 2), "lora_A"))
)


def site(labels, value, weight=1.0):
    delta = torch.zeros(SPACE.numel)
    for name, tensor in SPACE.tensors(delta).items():
        tensor[labels if "score" in name else slice(None)] = value
    return Update(delta, weight)


def test_sites_of_other_classes_do_not_shrink_a_row():
    merged = SPACE.tensors(SeenMean().merge([site([0], 2.0), site([1], 4.0, 3.0)], Context(SPACE)))
    assert merged["score.weight"].tolist() == [[2.0, 2.0], [4.0, 4.0], [0.0, 0.0]]
    assert merged["score.bias"].tolist() == [2.0, 4.0, 0.0]
    assert merged["m.lora_A.weight"].tolist() == [[3.5, 3.5]]


@pytest.mark.parametrize("clients", [1, 2, 9, 128])
def test_where_all_have_all_classes_it_is_the_mean(clients):
    draw = torch.Generator().manual_seed(clients)
    cohort = [Update(torch.randn(SPACE.numel, generator=draw), 1.0 + i) for i in range(clients)]
    assert torch.allclose(SeenMean().merge(cohort, Context(SPACE)), Mean().merge(cohort, Context(SPACE)), rtol=1e-6)


def test_a_row_that_moved_by_nothing_but_its_bias_is_a_row_of_each_slot_alone():
    delta = torch.zeros(SPACE.numel)
    SPACE.view(delta, "score.bias")[1] = 1.0
    merged = SPACE.tensors(SeenMean().merge([Update(delta), site([0], 1.0)], Context(SPACE)))
    assert merged["score.bias"].tolist() == [1.0, 1.0, 0.0]
    assert merged["score.weight"].tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("silent", [(), (1,), (0, 1, 2)])
def test_rows_of_bit_planes_are_seen_as_those_of_what_they_stand_for(silent):
    codec, ctx = Ternary(density=0.3), Context(SPACE)
    draw, cohort = torch.Generator().manual_seed(0), []
    for i in range(5):
        delta = torch.randn(SPACE.numel, generator=draw)
        for j in silent:
            delta[SPACE.bounds[j] : SPACE.bounds[j + 1]] = 0.0
        sender = Sender(round=1, client=i)
        cohort.append(Update(codec.planes(codec.encode(delta, SPACE, sender), SPACE, sender), 1.0 + i))
    dense = [Update(update.delta, update.weight) for update in cohort]
    assert torch.allclose(SeenMean().merge(cohort, ctx), SeenMean().merge(dense, ctx), rtol=1e-6)


class Net(nn.Module):
    """A classifier of two layers behind a layer whose name ends as its own does."""

    def __init__(self):
        super().__init__()
        self.query, self.pre_classifier, self.classifier = nn.Linear(4, 4), nn.Linear(4, 4), nn.Module()
        self.classifier.dense, self.classifier.out_proj = nn.Linear(4, 4), nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("saved", "heads"),
    [
        (["classifier.out_proj"], {"classifier.out_proj"}),
        (["out_proj"], {"classifier.out_proj"}),
        (["classifier"], {"classifier.out_proj", "classifier.dense"}),
        (["classifier.dense", "pre_classifier"], {"classifier.dense", "pre_classifier"}),
        (None, set()),
    ],
)
def test_a_module_that_peft_saves_is_a_head_by_whatever_end_of_its_path(saved, heads, tmp_path):
    config = peft.LoraConfig(r=1, target_modules=["query"], modules_to_save=saved)
    model = AdaptedModel(Net(), config, "", "net", Stream(0, Purpose.INIT))
    roles = {slot.name: slot.role for slot in model.space.slots}
    model.adapter(model.read()).save(tmp_path)
    assert {slot.name: slot.role for slot in Adapter.load(tmp_path).space.slots} == roles
    found = {name.removeprefix("base_model.model.").rpartition(".")[0] for name in roles if roles[name] == "head"}
    assert found == heads
    assert {role for name, role in roles.items() if "query" in name} == {"lora_A", "lora_B"}
    trained = {name for name in roles if "classifier" in name and roles[name] == "head"}
    cohort = [Update(torch.zeros(model.space.numel)) for _ in range(2)]
    for row, update in enumerate(cohort):
        for name in trained:
            model.space.view(update.delta, name)[row] = 2.0
    merged = model.space.tensors(SeenMean().merge(cohort, Context(model.space)))
    assert all((merged[name][:2] == 2.0).all() for name in trained)
