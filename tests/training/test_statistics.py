"""Statistics against autograd and the forward pass written out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedpeft.random import Purpose, Stream
from fedpeft.strategies.statistics import STATISTICS, check_statistic, gram_slots, statistic_space
from fedpeft.training import Measuring
from fedpeft.training.first_order import FirstOrderTrainer
from fedpeft.training.statistics import drawn
from tests import tiny
from tests.training.test_first_order import EXAMPLES, job, trainer


@pytest.fixture(scope="module", params=["sequence-classification", "causal-lm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FirstOrderTrainer:
    folder = tmp_path_factory.mktemp("model")
    return trainer(
        (tiny.save_bert if request.param == "sequence-classification" else tiny.save_llama)(folder), request.param
    )


def moved(model: FirstOrderTrainer) -> torch.Tensor:
    """An adapter that is not the fresh one, whose B is zero."""
    start = model.adapted.read()
    return start + 0.1 * torch.from_numpy(np.random.default_rng(0).standard_normal(len(start))).float()


def log_likelihoods(model: FirstOrderTrainer, tokens: tuple[int, ...]) -> torch.Tensor:
    """Of each class, for each thing that the model says of an example."""
    logits = model.adapted.model(input_ids=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)[None] if model.task == "sequence-classification" else logits[:-1].log_softmax(-1)


def test_the_fisher_is_the_mean_square_of_the_gradients_of_drawn_labels(model: FirstOrderTrainer) -> None:
    asked = replace(job(model, moved(model)), order=Stream(3, Purpose.DATA, 1, 1, part=1))
    found = model.statistics(asked, ["fisher"], 7)["fisher"]
    model.adapted.write(asked.start)
    model.adapted.model.eval()
    rows = asked.order.permutation(len(EXAMPLES))[:7]
    uniform = iter(asked.dropout.uniform(16 * 7))
    total = torch.zeros(model.adapted.space.numel, dtype=torch.float64)
    for row in rows:
        known = log_likelihoods(model, asked.data.tokens[row])
        labels = [int(np.searchsorted(np.cumsum(p), 1 - next(uniform))) for p in known.detach().double().exp().numpy()]
        model.adapted.model.zero_grad()
        sum(line[label] for line, label in zip(known, labels, strict=True)).backward()
        gradient = {s.name: p.grad for s, p in zip(model.adapted.space.slots, model.adapted.parameters(), strict=True)}
        total += model.adapted.space.flatten(gradient).double().square()
    model.adapted.model.zero_grad()
    assert torch.allclose(found.double(), total / 7, rtol=1e-3, atol=1e-10)
    assert float(found.max()) > 0


def test_drawn_labels_estimate_the_expectation_over_the_model_s_own(tmp_path: Path) -> None:
    """One example, whose Fisher information is a sum over classes, against many draws."""
    model = trainer(tiny.save_bert(tmp_path), "sequence-classification")
    one = job(model, moved(model), EXAMPLES[:1])
    model.adapted.write(one.start)
    model.adapted.model.eval()
    known = log_likelihoods(model, one.data.tokens[0])[0]
    expected = torch.zeros(model.adapted.space.numel, dtype=torch.float64)
    for value in known:
        gradients = torch.autograd.grad(value, model.adapted.parameters(), retain_graph=True)
        squares = [g.double().square().reshape(-1) for g in gradients]
        expected += float(value.detach().exp()) * torch.cat(squares)
    draws = [
        model.statistics(replace(one, dropout=replace(one.dropout, client=i)), ["fisher"], 1)["fisher"].double()
        for i in range(400)
    ]
    assert float((sum(draws) / 400 - expected).norm() / expected.norm()) < 0.2
    assert float((draws[0] - expected).norm() / expected.norm()) > 0.2


def test_a_gram_is_the_mean_of_the_inputs_of_b(model: FirstOrderTrainer) -> None:
    asked = job(model, moved(model))
    found = model.statistics(asked, ["gram"], 9)["gram"]
    space, own = model.adapted.space, statistic_space("gram", model.adapted.space)
    modules = dict(model.adapted.model.named_modules())
    rows = asked.order.permutation(len(EXAMPLES))[:9]
    assert len(own.slots) == len(gram_slots(space)) > 2
    for slot in own.slots:
        inputs: list[torch.Tensor] = []
        layer = modules[slot.name.removesuffix(".lora_B.weight")]
        hook = layer.register_forward_pre_hook(lambda _, args, kept=inputs: kept.append(args[0].detach()))
        with torch.no_grad():
            for row in rows:
                model.adapted.model(input_ids=torch.tensor([asked.data.tokens[row]]))
        hook.remove()
        x = torch.cat([each.reshape(-1, each.shape[-1]) for each in inputs]).double()
        z = x @ space.view(asked.start, slot.name.replace("lora_B", "lora_A")).double().T
        assert torch.allclose(own.view(found, slot.name).double(), z.T @ z / len(z), rtol=1e-3, atol=1e-6)


def test_a_head_s_sums_are_those_of_its_inputs_and_classes(tmp_path: Path) -> None:
    classifier = trainer(tiny.save_bert(tmp_path), "sequence-classification")
    asked = job(classifier, moved(classifier))
    own = statistic_space("head", classifier.adapted.space)
    (slot,) = own.slots
    found = own.view(classifier.statistics(asked, ["head"], 30)["head"], slot.name).double()
    inner = classifier.adapted.model.base_model.model
    rows = asked.order.permutation(len(EXAMPLES))[:30]
    with torch.no_grad():
        x = torch.cat([inner.bert(input_ids=torch.tensor([asked.data.tokens[row]])).pooler_output for row in rows])
    u = torch.cat([x, torch.ones(30, 1)], 1).double()
    y = functional.one_hot(torch.tensor([asked.data.targets[row] for row in rows]), len(tiny.COLOURS)).double()
    assert slot.shape == (u.shape[1] + y.shape[1], u.shape[1])
    assert torch.allclose(found, torch.cat([u.T @ u, y.T @ u]) / 30, rtol=1e-4, atol=1e-6)


def measurable(model: FirstOrderTrainer) -> list[str]:
    return list(STATISTICS) if model.task == "sequence-classification" else ["fisher", "gram"]


def test_several_at_once_are_what_each_is_alone_and_can_be_sent(model: FirstOrderTrainer) -> None:
    asked = job(model, moved(model))
    several = model.statistics(asked, measurable(model), 5)
    assert list(several) == measurable(model)
    for name in several:
        assert torch.equal(several[name], model.statistics(asked, [name], 5)[name])
        check_statistic(name, model.adapted.space, several[name])
    assert isinstance(model, Measuring)
    assert torch.equal(model.adapted.read(), asked.start)
    assert all(p.grad is None or not p.grad.any() for p in model.adapted.parameters())
    assert not any(module._forward_pre_hooks for module in model.adapted.model.modules())


def test_no_more_examples_are_used_than_there_are(model: FirstOrderTrainer) -> None:
    asked = job(model, moved(model), EXAMPLES[:3])
    few, many = (model.statistics(asked, measurable(model), limit) for limit in (3, 10_000))
    assert all(torch.equal(few[name], many[name]) for name in few)


def test_what_a_site_s_own_softmax_leaves_out_it_knows_nothing_of(tmp_path: Path) -> None:
    classifier = trainer(tiny.save_bert(tmp_path), "sequence-classification")
    start, space = moved(classifier), classifier.adapted.space
    seen = [example for example in EXAMPLES if example.label in (0, 2)]
    name = next(slot.name for slot in space.slots if slot.role == "head" and slot.shape == (4,))
    for labels, known in (("own", [True, False, True, False]), ("all", [True] * 4)):
        found = classifier.statistics(job(classifier, start, seen, labels=labels), ["fisher"], 48)["fisher"]
        assert (space.view(found, name) > 0).tolist() == known


def test_a_draw_is_the_class_that_the_running_sum_reaches() -> None:
    logits = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]]).repeat(4, 1)
    labels = drawn(logits, torch.tensor([0.0, 0.49, 0.51, 1 - 2**-53], dtype=torch.float64))
    assert labels.tolist() == [2, 2, 1, 1]
    uniform = torch.from_numpy(np.random.default_rng(0).random(50_000))
    many = drawn(torch.tensor([[0.0, 1.0, -1.0]]).repeat(50_000, 1), uniform)
    shares = torch.bincount(many, minlength=3) / 50_000
    assert torch.allclose(shares, functional.softmax(torch.tensor([0.0, 1.0, -1.0]), 0), atol=0.01)
