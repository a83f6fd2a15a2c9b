"""The resident trainer: it learns, repeats itself bit for bit, and takes the jobs of several sites."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft import adapters
from fedpeft.adapters import AdaptedModel
from fedpeft.data import Example
from fedpeft.errors import ConfigError, DataError
from fedpeft.random import Purpose, Stream
from fedpeft.training import Job, Settings
from fedpeft.training.first_order import FirstOrderTrainer, batches
from fedpeft.training.models import load_base, locate
from tests import tiny

Trainers = dict[str, tuple[FirstOrderTrainer, torch.Tensor]]

EXAMPLES = [
    Example(f"{article} {noun} is {filler}{colour}", label)
    for label, colour in enumerate(tiny.COLOURS)
    for noun in ("sky", "leaf", "rose", "stone")
    for article in ("the", "a")
    for filler in ("", "very ", "very very ")
]


def trainer(folder: Path, task: str, dtype: str = "float32") -> FirstOrderTrainer:
    labels = tiny.COLOURS if task == "sequence-classification" else ()
    base = load_base(str(folder), task, labels, Stream(0, Purpose.INIT))  # type: ignore[arg-type]
    text = "LoraConfig(r=4, lora_alpha=8, target_modules='all-linear', lora_dropout=0.1)"
    adapted = AdaptedModel(
        base.model,
        adapters.for_task(adapters.parse_config(text), task),
        base.sha256,
        base.name,
        Stream(0, Purpose.INIT, 1),
    )
    return FirstOrderTrainer(base, adapted, task, 16, "cpu", dtype)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Trainers:
    """Both trainers, loaded once, each with the adapter that it began with."""
    bert, llama = tiny.save_bert(tmp_path_factory.mktemp("bert")), tiny.save_llama(tmp_path_factory.mktemp("llama"))
    loaded = {"classifier": trainer(bert, "sequence-classification"), "writer": trainer(llama, "causal-lm")}
    return {name: (made, made.adapted.read()) for name, made in loaded.items()}


@pytest.fixture
def classifier(trainers: Trainers) -> FirstOrderTrainer:
    return _as_begun(*trainers["classifier"])


@pytest.fixture
def writer(trainers: Trainers) -> FirstOrderTrainer:
    return _as_begun(*trainers["writer"])


def _as_begun(made: FirstOrderTrainer, start: torch.Tensor) -> FirstOrderTrainer:
    """Without what the test before has left in it: with several workers any test may be the first."""
    made.adapted.write(start)
    return made


def job(of: FirstOrderTrainer, start: torch.Tensor, examples=EXAMPLES, client: int = 1, **settings: object) -> Job:
    chosen = Settings(**{"local_steps": 40, "batch_size": 8, "learning_rate": 5e-3, **settings})
    order = Stream(0, Purpose.DATA, 1, client)
    return Job(start, of.encode(examples), chosen, order, replace(order, purpose=Purpose.DROPOUT))


def test_a_classifier_learns(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    data = classifier.encode(EXAMPLES)
    before = classifier.evaluate(start, data)
    (trained,) = classifier.train([job(classifier, start, local_steps=150)])
    after = classifier.evaluate(trained.vector, data)
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["loss"] < before["loss"] / 2


def test_a_language_model_learns_the_completion_and_not_the_prompt(writer: FirstOrderTrainer) -> None:
    examples = [
        Example(colour, prompt=f"the {noun} is") for noun, colour in zip(("sky", "leaf"), tiny.COLOURS, strict=False)
    ]
    data = writer.encode(examples)
    assert all(
        targets[:3] == (-100, -100, -100) and targets[3] == tokens[3]
        for tokens, targets in zip(data.tokens, data.targets, strict=True)
    )
    start = writer.adapted.read()
    (trained,) = writer.train([job(writer, start, examples)])
    assert writer.evaluate(trained.vector, data)["accuracy"] == 1.0
    assert writer.evaluate(start, data)["accuracy"] < 1.0


def test_plain_text_is_learnt_whole(writer: FirstOrderTrainer) -> None:
    data = writer.encode([Example("the sky is blue")])
    assert data.targets == data.tokens


def test_the_same_job_gives_the_same_bits_whatever_came_between(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    one, other = job(classifier, start, client=1), job(classifier, start, client=2)
    torch.rand(7)
    first = next(iter(classifier.train([one]))).vector
    both = [trained.vector for trained in classifier.train([other, one])]
    assert torch.equal(first, both[1])
    assert not torch.equal(both[0], both[1])


def test_training_leaves_the_global_generator_and_the_base_alone(classifier: FirstOrderTrainer) -> None:
    trained = {id(p) for p in classifier.adapted.parameters()}
    frozen = [p.clone() for p in classifier.adapted.model.parameters() if id(p) not in trained]
    state = torch.random.get_rng_state()
    list(classifier.train([job(classifier, classifier.adapted.read(), local_steps=3)]))
    assert torch.equal(state, torch.random.get_rng_state())
    after = [p for p in classifier.adapted.model.parameters() if id(p) not in trained]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))


def test_own_labels_leave_the_rows_of_unseen_classes_alone(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    seen = [example for example in EXAMPLES if example.label in (0, 2)]
    space = classifier.adapted.space
    name = next(slot.name for slot in space.slots if slot.role == "head" and slot.shape == (4,))
    for labels, moved in (("own", False), ("all", True)):
        (trained,) = classifier.train([job(classifier, start, seen, local_steps=2, labels=labels)])
        change = space.view(trained.vector - start, name)
        assert bool(change[[1, 3]].abs().max() > 0) is moved
        assert bool(change[[0, 2]].abs().max() > 0)


def test_calibrated_logits_are_those_of_the_paper(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    few = [example for example in EXAMPLES if example.label == 0][:1]
    many = [example for example in EXAMPLES if example.label == 2][:16]
    one = job(classifier, start, few + many, labels="own", calibration=2.0)
    classifier.evaluate(start, one.data)
    with torch.no_grad():
        plain = classifier.loss(replace(one, settings=replace(one.settings, calibration=0.0)), np.arange(17))
        calibrated = classifier.loss(one, np.arange(17))
        logits, targets = classifier._forward(one.data, np.arange(17))
    margins = 2.0 * torch.tensor([1, 16]) ** -0.25
    wanted = torch.nn.functional.cross_entropy(logits[:, [0, 2]] - margins, targets // 2)
    assert torch.allclose(calibrated, wanted)
    assert not torch.allclose(calibrated, plain)


def test_logits_are_calibrated_among_the_labels_that_a_site_has() -> None:
    with pytest.raises(ValueError, match="set labels: own or calibration: 0"):
        Settings(labels="all", calibration=1.0)


def test_clipping_bounds_the_first_step(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    results = [
        next(iter(classifier.train([job(classifier, start, local_steps=1, clip_norm=clip)]))).vector
        for clip in (0.0, 1e-9)
    ]
    assert float((results[1] - start).norm()) < float((results[0] - start).norm())


@pytest.mark.parametrize("size", [5, 20, 60, 96])
@pytest.mark.parametrize(("steps", "batch"), [(1, 4), (7, 5), (50, 16)])
def test_batches_pass_over_the_data_evenly_and_hold_no_row_twice(
    classifier: FirstOrderTrainer, size: int, steps: int, batch: int
) -> None:
    data = classifier.encode(EXAMPLES[:size])
    cut = batches(data, steps, batch, Stream(0, Purpose.DATA, 1, 1))
    assert [len(rows) for rows in cut] == [batch] * steps
    passes = -(-steps * batch // max(batch, size // batch * batch))
    counts = torch.bincount(torch.tensor([int(row) for rows in cut for row in rows]), minlength=size)
    assert int(counts.max()) <= passes * -(-batch // size)
    if size >= batch:
        assert all(len(set(rows.tolist())) == batch for rows in cut)
        assert size < 2 * batch or int(counts.min()) > 0 or passes < 3


def test_a_site_of_one_label_learns_against_all(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    (trained,) = classifier.train([job(classifier, start, EXAMPLES[:20], local_steps=2, labels="own")])
    assert trained.metrics["loss"] > 0
    assert not torch.equal(trained.vector, start)


def test_a_long_prompt_loses_its_beginning_and_a_text_ends_with_the_end_token(writer: FirstOrderTrainer) -> None:
    (tokens,) = writer.encode([Example("blue", prompt="rose " * 30 + "sky is")]).tokens
    assert len(tokens) == 16
    assert tokens[-3:] == tuple(tiny.WORDS.index(word) for word in ("sky", "is", "blue"))
    writer._tokenizer.eos_token = "today"
    try:
        data = writer.encode([Example("blue", prompt="sky is")])
        assert data.tokens[0][-1] == data.targets[0][-1] == tiny.WORDS.index("today")
    finally:
        writer._tokenizer.eos_token = None


def test_bfloat16_learns_too(tmp_path: Path) -> None:
    half = trainer(tiny.save_bert(tmp_path), "sequence-classification", "bfloat16")
    start = half.adapted.read()
    (trained,) = half.train([job(half, start, local_steps=150)])
    data = half.encode(EXAMPLES)
    assert half.evaluate(trained.vector, data)["accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in half.adapted.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_learns_too(tmp_path: Path, dtype: str) -> None:
    base = load_base(str(tiny.save_bert(tmp_path)), "sequence-classification", tiny.COLOURS, Stream(0, Purpose.INIT))
    config = adapters.for_task(
        adapters.parse_config("LoraConfig(r=4, target_modules='all-linear')"), "sequence-classification"
    )
    adapted = AdaptedModel(base.model, config, base.sha256, base.name, Stream(0, Purpose.INIT, 1))
    on_gpu = FirstOrderTrainer(base, adapted, "sequence-classification", 16, "cuda", dtype)
    start = on_gpu.adapted.read()
    (trained,) = on_gpu.train([job(on_gpu, start, local_steps=150)])
    assert trained.vector.is_cuda
    assert on_gpu.evaluate(trained.vector, on_gpu.encode(EXAMPLES))["accuracy"] > 0.9


def test_refusals_say_what_is_missing(
    classifier: FirstOrderTrainer, writer: FirstOrderTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="example 0 has no label"):
        classifier.encode([Example("the sky")])
    with pytest.raises(DataError, match="example 0 has no token to learn"):
        writer.encode([Example("", prompt="the sky")])
    with pytest.raises(DataError, match="no examples"):
        next(iter(classifier.train([job(classifier, classifier.adapted.read(), [])])))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_base("no/such-model", "causal-lm", (), Stream(0, Purpose.INIT))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedpeft\[demo\]'"):
        locate("sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without one")
def test_a_missing_device_is_said(tmp_path: Path) -> None:
    base = load_base(str(tiny.save_bert(tmp_path)), "sequence-classification", tiny.COLOURS, Stream(0, Purpose.INIT))
    config = adapters.for_task(
        adapters.parse_config("LoraConfig(r=2, target_modules=['query'])"), "sequence-classification"
    )
    adapted = AdaptedModel(base.model, config, base.sha256, base.name, Stream(0, Purpose.INIT, 1))
    with pytest.raises(ConfigError, match="no CUDA device"):
        FirstOrderTrainer(base, adapted, "sequence-classification", 16, "cuda", "float32")


def test_sgd_takes_the_gradient_itself(classifier: FirstOrderTrainer) -> None:
    start = classifier.adapted.read()
    one = job(classifier, start, EXAMPLES[:16], local_steps=1, batch_size=16, learning_rate=0.5, clip_norm=0.0)
    settings = replace(one.settings, optimizer="sgd")
    (small,) = classifier.train([replace(one, settings=replace(settings, learning_rate=0.25))])
    (large,) = classifier.train([replace(one, settings=settings)])
    assert torch.allclose(2 * (small.vector - start), large.vector - start, rtol=1e-3, atol=1e-6)
    (adam,) = classifier.train([one])
    assert float((adam.vector - start).abs().max()) > 10 * float((large.vector - start).abs().median())


def test_a_proximal_term_holds_a_site_near_its_start(classifier: FirstOrderTrainer) -> None:
    start = torch.zeros(classifier.adapted.space.numel)
    moved = {}
    for proximal in (0.0, 50.0, 500.0):
        one = job(classifier, start, local_steps=30, learning_rate=1e-3)
        (trained,) = classifier.train(
            [replace(one, settings=replace(one.settings, optimizer="sgd", proximal=proximal))]
        )
        moved[proximal] = float((trained.vector - start).norm())
    assert moved[0.0] > 1.1 * moved[50.0] > 1.2 * moved[500.0] > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_the_slots_of_a_job_are_trained(classifier: FirstOrderTrainer, optimizer: str) -> None:
    space, start = classifier.adapted.space, classifier.adapted.read() + 0.01
    chosen = frozenset(slot.name for slot in space.slots if slot.role in ("lora_B", "head"))
    one = job(classifier, start, local_steps=3)
    settings = replace(one.settings, optimizer=optimizer, weight_decay=0.1, proximal=0.1)
    (trained,) = classifier.train([replace(one, slots=chosen, settings=settings)])
    for slot in space.slots:
        before, after = space.view(start, slot.name), space.view(trained.vector, slot.name)
        assert torch.equal(before, after) == (slot.name not in chosen)
    assert all(parameter.requires_grad for parameter in classifier.adapted.parameters())
    (whole,) = classifier.train([replace(one, settings=settings)])
    assert all(not torch.equal(space.view(start, s.name), space.view(whole.vector, s.name)) for s in space.slots)
