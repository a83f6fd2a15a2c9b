"""With a server, without one, and in one place: quality against bytes and wall time, on the demo's task.

`python -m simulations.decentralised` runs each mode over `--seeds` seeds, from one; `--quick` is two short rounds of
three sites. "central": the same adapter on all data, with as many examples as all sites see together. "server": the
demo. "delta", "gossip" and "scalar": the same sites as peers, in as many epochs. Bytes are as sent by one peer,
requests and answers, votes and comparisons included, without what gRPC and TLS add; at a server, both directions of
one site. Sites train one after another in one process, so `wall_s` is the work of all of them, without measuring.
`--curves` measures every epoch, and prints what the modes had learnt at equal bytes and in equal time.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from simulations import table
from simulations.decentralised.curves import COSTS, at_equal, draw
from simulations.decentralised.modes import PEERS, outcome

COLUMNS = ("mode", "seed", "accuracy", "loss", "bytes_per_peer", "wall_s", "epochs", "agree", "distance")
_MEASURED = 300  # held-out examples, of a point of a curve


def outcomes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each mode and seed."""
    short = ["rounds=2", "sites=3", "training.local_steps=4"] if options.quick else []
    sample = f"data.test_examples={_MEASURED if options.curves else 1}"
    modes = [m for m in ("central", "server", *PEERS) if not options.mode or {m, m.split(",")[0]} & set(options.mode)]
    for seed in range(options.seed, options.seed + options.seeds):
        for mode in modes:
            common = [*short, sample, *options.set, f"seed={seed}"]
            row = dict.fromkeys(COLUMNS) | {"mode": mode, "seed": seed} | outcome(mode, common, options.quick)
            shown = {name: row[name] for name in COLUMNS}
            Console(stderr=True).print(f"{mode}, seed {seed}: {shown}", style="dim")
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
    parser.add_argument("--mode", action="append", default=[], help="only these, by name or first word")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the demo")
    parser.add_argument("--curves", action="store_true", help="compare the first seed's learning curves")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw them too, as .svg or .png")
    options = parser.parse_args()
    rows = list(outcomes(options))
    means = list(averages(rows)) if options.seeds > 1 else []
    table.show("without a server, on the demo's task", rows, options, COLUMNS, means)
    table.save(rows, options)
    curves = {row["mode"]: row["curve"] for row in rows if "curve" in row and row["seed"] == options.seed}
    if options.curves and curves:
        _compare(curves, options)


def _compare(curves: Mapping[str, Any], options: argparse.Namespace) -> None:
    for cost, title in COSTS.items():
        lines = list(at_equal(cost, curves))
        table.show(f"accuracy on {_MEASURED} examples by {title}", lines, options, (cost, *curves))
    if options.plot:
        draw(curves, options.plot)


if __name__ == "__main__":
    main()
