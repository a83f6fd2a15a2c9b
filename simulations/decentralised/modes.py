"""The modes that are compared, each as one run of the demo's task: with a server, without one, and in one place."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedpeft.config import Experiment, load
from fedpeft.config.swarm import load_swarm
from fedpeft.runtime.simulated.rehearsal import Rehearsal
from simulations.central import central
from simulations.decentralised.curves import Point
from simulations.whole_run import whole_run

# How peers talk, and what of the demo is other than for a server.
PEERS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "delta": (["topology=complete"], []),
    "gossip, ring": (["topology=ring", "mode=gossip", "gamma=0.5"], ["codec=Ternary(density=0.2)"]),
    "scalar, gradient": (
        ["topology=complete", "mode=scalar", "segments=8", "scalar.labels=own", "scalar.learning_rate=1.5",
         "scalar.directions=65536", "scalar.per_segment=4096", "scalar.directions_per_step=4096"], []),
    "scalar, spsa": (
        ["topology=complete", "mode=scalar", "segments=1", "scalar.labels=own", "scalar.learning_rate=40",
         "scalar.directions_per_step=16", "scalar.estimator=spsa", "scalar.per_segment=64"], []),
}  # fmt: skip
BRIEF = ["scalar.per_segment=16", "scalar.directions=128"]


def in_one_place(experiment: Experiment) -> dict[str, Any]:
    """The same adapter on all data, with as many examples as all sites see together."""
    plan = experiment.training
    examples = experiment.sites * experiment.rounds * plan.local_steps * plan.batch_size
    found = dict(central(experiment, 1, examples // 32))
    return {"bytes_per_peer": 0, "wall_s": found.pop("train_s"), **found}


def served(experiment: Experiment) -> dict[str, Any]:
    """By a server and its sites."""
    done = whole_run(experiment)
    sent = [(row["up_bytes"] + row["down_bytes"]) / experiment.sites for row in done.rounds]
    seconds = [row["round_s"] - row["evaluate_s"] for row in done.rounds]
    return {"epochs": len(done.rounds), **_summed(sent, seconds, done.rounds), **done.measured}


def by_peers(experiment: Experiment, how: Sequence[str]) -> dict[str, Any]:
    """By the sites alone."""
    with tempfile.TemporaryDirectory() as folder:
        running = Rehearsal(experiment, load_swarm(how), Path(folder) / "run")
        rows = list(running.run())
    beside = {name: rows[-1].get(name) for name in ("agree", "distance")}
    sent = [row["sent_bytes"] / experiment.sites for row in rows]
    summed = _summed(sent, [row["epoch_s"] for row in rows], rows)
    return {"epochs": len(rows), **summed, **beside, **running.measure()}


def outcome(mode: str, common: Sequence[str], brief: bool) -> dict[str, Any]:
    """What a mode comes to; "curve" holds its `Point` after each epoch.

    Args:
        mode: "central", "server", or one of `PEERS`.
        common: overrides of the demo.
        brief: publish few scalars, along few directions.
    """
    if mode == "central":
        return in_one_place(load(None, common))
    if mode == "server":
        return served(load(None, ["strategy=Mean()", *common]))
    how, more = PEERS[mode]
    return by_peers(load(None, [*common, *more]), [*how, *(BRIEF if brief else [])])


def _summed(sent: Iterable[float], seconds: Iterable[float], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    costs = zip(accumulate(sent), accumulate(seconds), strict=True)
    curve = [Point(*cost, row["accuracy"], row["loss"]) for cost, row in zip(costs, rows, strict=True)]
    return {"bytes_per_peer": curve[-1].sent_bytes, "wall_s": curve[-1].seconds, "curve": curve}
