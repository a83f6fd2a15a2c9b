"""Each row of a head is the mean over those who moved it."""

import pytest
import torch

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
