"""With a server, without one, and in one place: quality against bytes and wall time, on the demo's task.

`python -m simulations.decentralised` runs each mode over `--seeds` seeds, from one; `--quick` is two short rounds of
three sites. "central": the same adapter on all data, with as many examples as all sites see together. "server": the
demo. "delta", "gossip" and "scalar": the same sites as peers, in as many epochs. Bytes are as sent by one peer,
requests and answers, votes and comparisons included, without what gRPC and TLS add; at a server, both directions of
one site. Sites train one after another in one process, so `wall_s` is the work of all of them, without measuring.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from fedpeft.config import Experiment, load
from fedpeft.config.swarm import load_swarm
from fedpeft.preparation import prepare
from fedpeft.random import Purpose, Stream
from fedpeft.runtime.peer.rehearsal import Rehearsal
from fedpeft.training import Job, Settings
from simulations import table
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
COLUMNS = ("mode", "seed", "accuracy", "loss", "bytes_per_peer", "wall_s", "epochs", "agree", "distance")


def central(experiment: Experiment) -> dict[str, Any]:
    """AdamW on all data, batch 32, 3/4 of the steps at rate 3e-3 and the rest at 6e-4."""
    known, plan = experiment.data, experiment.training
    prepared = prepare(experiment.model, experiment.peft, known.source, known.labels, experiment.seed)
    trainer = prepared.trainer
    train, vector = trainer.encode(prepared.train), trainer.adapted.read()
    steps = experiment.sites * experiment.rounds * plan.local_steps * plan.batch_size // 32
    began = time.perf_counter()
    for part, share, rate in ((1, 3, 3e-3), (2, 1, 6e-4)):
        order, dropout = (Stream(experiment.seed, purpose, part) for purpose in (Purpose.DATA, Purpose.DROPOUT))
        job = Job(vector, train, Settings(max(1, steps * share // 4), 32, rate), order, dropout)
        vector = next(iter(trainer.train([job]))).vector
    seconds = time.perf_counter() - began
    return {"bytes_per_peer": 0, "wall_s": seconds, **trainer.evaluate(vector, trainer.encode(prepared.test))}


def served(experiment: Experiment) -> dict[str, Any]:
    """By a server and its sites."""
    done = whole_run(experiment)
    traffic = done.traffic
    both = sum(traffic[f"{way}_bytes_per_site"] or 0 for way in ("up", "down"))
    seconds = sum(row["round_s"] - row["evaluate_s"] for row in done.rounds)
    return {"bytes_per_peer": both, "wall_s": seconds, "epochs": len(done.rounds), **done.measured}


def by_peers(experiment: Experiment, how: Sequence[str]) -> dict[str, Any]:
    """By the sites alone."""
    with tempfile.TemporaryDirectory() as folder:
        running = Rehearsal(experiment, load_swarm(how), Path(folder) / "run")
        rows = list(running.run())
    sent = sum(row["sent_bytes"] for row in rows) / experiment.sites
    seconds, last = sum(row["epoch_s"] for row in rows), rows[-1]
    beside = {name: last.get(name) for name in ("agree", "distance")}
    return {"bytes_per_peer": sent, "wall_s": seconds, "epochs": len(rows), **beside, **running.measure()}


def outcome(mode: str, common: Sequence[str], brief: bool) -> dict[str, Any]:
    """What a mode comes to.

    Args:
        mode: "central", "server", or one of `PEERS`.
        common: overrides of the demo.
        brief: publish few scalars, along few directions.
    """
    if mode == "central":
        return central(load(None, common))
    if mode == "server":
        return served(load(None, common))
    how, more = PEERS[mode]
    return by_peers(load(None, [*common, *more]), [*how, *(BRIEF if brief else [])])


def outcomes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each mode and seed."""
    short = ["rounds=2", "sites=3", "training.local_steps=4"] if options.quick else []
    modes = [m for m in ("central", "server", *PEERS) if not options.mode or m.split(",")[0] in options.mode]
    for seed in range(options.seed, options.seed + options.seeds):
        for mode in modes:
            common = [*short, "data.test_examples=1", *options.set, f"seed={seed}"]
            row = dict.fromkeys(COLUMNS) | {"mode": mode, "seed": seed} | outcome(mode, common, options.quick)
            Console(stderr=True).print(f"{mode}, seed {seed}: {row}", style="dim")
            yield row


def averages(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each mode with the means over seeds."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        same = [row for row in rows if row["mode"] == mode]
        means = {key: mean(row[key] for row in same) for key, value in same[0].items() if isinstance(value, float)}
        yield {**same[0], **means, "seed": "mean"}


def main() -> None:
    """Run and print."""
    parser = table.arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--mode", action="append", default=[], help="only these, by their first word")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the demo")
    options = parser.parse_args()
    rows = list(outcomes(options))
    table.show(
        "without a server, on the demo's task",
        rows,
        options,
        COLUMNS,
        list(averages(rows)) if options.seeds > 1 else [],
    )


if __name__ == "__main__":
    main()
