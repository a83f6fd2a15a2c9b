"""A whole experiment in one process: several sites, one resident base model, real bytes between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fedpeft import config, data, expressions
from fedpeft.config import Experiment
from fedpeft.errors import JournalError
from fedpeft.federation import Client, ClientStore, Transport, Watch, unwatched
from fedpeft.preparation import Prepared, Say
from fedpeft.random import Purpose, Stream
from fedpeft.run import Connect, Run
from fedpeft.runtime.memory import MemoryTransport


@dataclass(frozen=True)
class Site:
    """A simulated site.

    Args:
        name: its node id.
        size: number of its examples.
        label_counts: how many of them have each label.
    """

    name: str
    size: int
    label_counts: tuple[int, ...]


class Simulation(Run):
    """An experiment whose sites are all here, ready to run or to be taken up where it stopped.

    Args:
        experiment: what to run.
        folder: of the run; made if it does not exist.
        say: told what is being prepared.
        watch: told of what happens.
        connect: what reaches the simulated sites; None: all of them work in this process, one after another.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
        JournalError: another process works on the folder, or its run is in another space.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        say: Say = lambda text: None,
        watch: Watch = unwatched,
        connect: Connect | None = None,
    ) -> None:
        self._sites: list[Site] = []

        def here(prepared: Prepared, folder: Path) -> Transport:
            split = partition(experiment, prepared)
            self._sites = _named(data.describe(prepared.train, split))
            if connect is not None:
                return connect(prepared, folder)
            return MemoryTransport(
                {site.name: client(experiment, prepared, split, i, folder) for i, site in enumerate(self._sites)}
            )

        super().__init__(experiment, folder, here, say, watch)

    def save(self) -> Path:
        """Write the global adapter, and beside it, in `adapters/`, each site's own where some slots are never sent."""
        if self.experiment.plan().personal(self.space):
            for site in self._sites:
                if _state_file(self.folder, site.name).exists():
                    self._trainer.adapted.adapter(self.own(site.name)).save(self.folder / "adapters" / site.name)
        return super().save()

    def own(self, site: str) -> Float[Tensor, " d"]:
        """The adapter that a site would train on from: the global one, and what the site has not sent."""
        return self.server.state.vector + ClientStore(_state_file(self.folder, site), self.space).load().residual

    def sites(self) -> Mapping[str, Mapping[str, int]]:
        """Examples of each site, and the number of its classes."""
        return {
            site.name: {"examples": site.size, "labels": sum(n > 0 for n in site.label_counts)} for site in self._sites
        }


def partition(experiment: Experiment, prepared: Prepared) -> data.SiteIndices:
    """The rows of the training examples that each simulated site holds.

    Raises:
        ValueError: there are not enough examples, labels or groups for so many sites.
    """
    rule = data.parse_partition(experiment.data.partition, imports=True)
    return rule.split(prepared.train, experiment.sites, experiment.seed)


def client(experiment: Experiment, prepared: Prepared, split: data.SiteIndices, index: int, folder: Path) -> Client:
    """The client of a simulated site, from 0, whose state lives in the run's folder."""
    name, plan = site_name(index, len(split)), experiment.plan()
    order = Stream(experiment.seed, Purpose.SPLIT, part=2, client=index).permutation(len(split[index]))
    back = round(experiment.data.held_out * (len(order) - 1))
    held_out, data = (
        prepared.trainer.encode([prepared.train[split[index][i]] for i in sorted(rows)])
        for rows in (order[:back], order[back:])
    )
    return Client(
        prepared.trainer,
        data,
        prepared.space,
        ClientStore(_state_file(folder, name), prepared.space),
        plugins={repr(codec): codec for codec in (plan.codec, plan.broadcast)},
        rank=experiment.ranks[index] if experiment.ranks else 0,
        held_out=held_out if back else None,
    )


def _state_file(folder: Path, site: str) -> Path:
    return folder / "sites" / f"{site}.state"


def site_name(index: int, sites: int) -> str:
    """The node id of a simulated site, from 0: as wide as the last one's, so that names sort as numbers."""
    return f"site-{index + 1:0{len(str(sites))}}"


def simulate(
    experiment: Experiment | Mapping[str, Any] | None = None, folder: Path | str = "runs/simulation"
) -> list[dict[str, Any]]:
    """Run an experiment to its end, or take it up where it stopped; returns the metrics of its rounds.

    Args:
        experiment: as an object, as the dictionary that a YAML holds, or None for the demo.
        folder: of the run.

    Raises:
        ConfigError: the experiment, its model or its data cannot be used.
        JournalError: the folder is of another run, or in use.
        RunError: the run cannot go on.
    """
    if not isinstance(experiment, Experiment):
        experiment = config.validate(experiment or {})
    with Simulation(experiment, Path(folder)) as simulation:
        for _ in simulation.run():
            pass
        return simulation.server.history()


def new_folder(runs: Path, name: str) -> Path:
    """A folder for a new run: `runs/name`, or `runs/name-2` and so on where earlier runs are."""
    number = 1
    while (folder := runs / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def resume(run: str, rounds: int | None = None, runs: Path = Path("runs")) -> tuple[Experiment, Path]:
    """Experiment and folder of a run that exists, by its folder or by its name in `runs`.

    Args:
        run: folder or name.
        rounds: rounds in all, instead of what the run's config says.
        runs: where runs are.

    Raises:
        JournalError: there is no such run.
    """
    folder = next((path for path in (Path(run), runs / run) if (path / "config.yaml").exists()), None)
    if folder is None:
        names = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
        raise JournalError(f"{run!r} is no run; {expressions.nearest(run, names) if names else f'{runs}/ holds none'}")
    return config.load(folder / "config.yaml", [f"rounds={rounds}"] if rounds else []), folder


def _named(summaries: tuple[data.SiteSummary, ...]) -> list[Site]:
    return [Site(site_name(i, len(summaries)), s.size, s.label_counts) for i, s in enumerate(summaries)]
