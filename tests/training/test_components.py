"""Sites of different ranks: each trains the first components of every LoRA product, in the space that all share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpeft import adapters
from fedpeft.adapters import AdaptedModel
from fedpeft.config import validate
from fedpeft.data import Example
from fedpeft.errors import ConfigError
from fedpeft.federation import Client, ClientStore
from fedpeft.preparation import prepare
from fedpeft.random import Purpose, Stream
from fedpeft.simulation import Simulation
from fedpeft.space import Slot, Space
from fedpeft.strategies import modules
from fedpeft.training import Encoded, Job, Settings
from fedpeft.training.first_order import FirstOrderTrainer
from fedpeft.training.models import load_base
from tests import tiny

EXAMPLES = [Example(f"the sky is {colour}", i) for i, colour in enumerate(tiny.COLOURS)] * 4


def trainer(folder: Path, rank: int, alpha: int) -> FirstOrderTrainer:
    base = load_base(str(folder), "sequence-classification", tiny.COLOURS, Stream(0, Purpose.INIT))
    text = f"LoraConfig(r={rank}, lora_alpha={alpha}, target_modules=['query', 'dense'])"
    config = adapters.for_task(adapters.parse_config(text), "sequence-classification")
    adapted = AdaptedModel(base.model, config, base.sha256, base.name, Stream(0, Purpose.INIT, 1))
    return FirstOrderTrainer(base, adapted, "sequence-classification", 16, "cpu", "float32")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def four(bert: Path) -> FirstOrderTrainer:
    return trainer(bert, 4, 8)


def train(of: FirstOrderTrainer, start: torch.Tensor, rank: int = 0, **settings: object) -> torch.Tensor:
    chosen = Settings(**{"local_steps": 5, "batch_size": 8, "learning_rate": 1e-2, **settings})  # type: ignore[arg-type]
    order = Stream(0, Purpose.DATA, 1, 1)
    job = Job(start, of.encode(EXAMPLES), chosen, order, replace(order, purpose=Purpose.DROPOUT), rank=rank)
    (trained,) = of.train([job])
    return trained.vector


def somewhere(of: FirstOrderTrainer) -> torch.Tensor:
    return of.adapted.read() + 0.1 * torch.linspace(-1, 1, of.adapted.space.numel)


@pytest.mark.parametrize("rank", [4, 9])
def test_a_site_of_the_whole_rank_trains_as_ever(four: FirstOrderTrainer, rank: int) -> None:
    start = somewhere(four)
    assert torch.equal(train(four, start, rank, weight_decay=0.1), train(four, start, weight_decay=0.1))


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"proximal": 0.5}, {"clip_norm": 0.0}], ids=repr)
def test_components_beyond_the_rank_get_no_delta(four: FirstOrderTrainer, settings: dict[str, object]) -> None:
    start, space = somewhere(four), four.adapted.space
    delta = train(four, start, 1, weight_decay=0.5, **settings) - start
    for module in modules(space):
        a, b = space.view(delta, module.a), space.view(delta, module.b)
        assert a[0].any() and b[:, 0].any() and not a[1:].any() and not b[:, 1:].any()
    assert all(space.view(delta, slot.name).any() for slot in space.slots if slot.role == "head")


def test_it_is_what_a_lora_of_that_rank_would_do_with_alpha_folded_in(bert: Path, four: FirstOrderTrainer) -> None:
    """alpha / r is 2 in both; what the smaller one does not have is zero in the larger one."""
    two = trainer(bert, 2, 4)
    large, small = four.adapted.space, two.adapted.space
    start, less = somewhere(four), two.adapted.read()
    for module in modules(large):
        large.view(start, module.b)[:, 2:] = 0
    for slot in large.slots:
        small.view(less, slot.name).copy_(large.view(start, slot.name)[tuple(map(slice, _shape(small, slot)))])
    moved, wanted = train(four, start, 2), train(two, less)
    for slot in large.slots:
        found = large.view(moved, slot.name)[tuple(map(slice, _shape(small, slot)))]
        assert torch.allclose(found, small.view(wanted, slot.name), atol=1e-5)
    assert not torch.allclose(train(four, start), moved)


def _shape(space: Space, slot: Slot) -> tuple[int, ...]:
    return next(other.shape for other in space.slots if other.name == slot.name)


def test_what_has_no_components_is_refused(four: FirstOrderTrainer) -> None:
    with pytest.raises(ValueError, match="a supermask's scores have no components"):
        train(four, somewhere(four), 1, supermask=0.5)
    space = Space((Slot("score", (2, 2), "head"),))
    with pytest.raises(ValueError, match="rank 2: expected components of LoRA products, of which the adapter has none"):
        Client(four, Encoded((), ()), space, ClientStore(None, space), rank=2)


def rows(folder: Path, name: str, **more: object) -> tuple[Simulation, list[float]]:
    training = {"local_steps": 6, "batch_size": 8, "learning_rate": 1e-2}
    with Simulation(
        validate(tiny.experiment(folder, **{"training": training, "rounds": 4, **more})), folder / name
    ) as simulation:
        return simulation, [simulation.server.before()["loss"], *(row["loss"] for row in simulation.run())]


def test_a_run_of_whole_ranks_is_the_run_without_and_one_of_less_leaves_the_rest_alone(tmp_path: Path) -> None:
    plain, _ = rows(tmp_path, "plain", rounds=2)
    whole, _ = rows(tmp_path, "whole", rounds=2, ranks=[2, 2, 0])
    assert torch.equal(plain.server.state.vector, whole.server.state.vector)
    less, _ = rows(tmp_path, "less", rounds=2, ranks=[1, 1, 1])
    space = less.space
    moved = less.server.state.vector - start_of(less)
    for module in modules(space):
        assert not space.view(moved, module.a)[1:].any() and not space.view(moved, module.b)[:, 1:].any()
        assert space.view(moved, module.b)[:, 0].any()


def start_of(simulation: Simulation) -> torch.Tensor:
    experiment = simulation.experiment
    return prepare(
        experiment.model, experiment.peft, experiment.data.source, (), experiment.seed
    ).trainer.adapted.read()


def test_sites_of_different_ranks_learn_with_flexlora(tmp_path: Path) -> None:
    rules = {"strategy": "FlexLoRA(ordered=True)", "server_optimizer": "SGD(lr=1.0)", "codec": "Identity()"}
    _, alike = rows(tmp_path, "alike", **rules)
    simulation, mixed = rows(tmp_path, "mixed", ranks=[2, 1, 1], **rules)
    assert mixed[0] - mixed[-1] > 0.5 * (alike[0] - alike[-1]) > 0
    vector, space = simulation.server.state.vector, simulation.space
    for module in modules(space):
        pair = module.factors(space, vector)
        lengths = pair.b.norm(dim=0) * pair.a.norm(dim=1)
        assert lengths[0] >= lengths[1]


def test_an_experiment_has_a_rank_for_each_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks: expected one for each of the 3 sites, got 2"):
        validate(tiny.experiment(tmp_path, ranks=[2, 1]))
