"""What `fedpeft simulate --topology` shows: peers in one process, an epoch on a line."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.cli.console import out, size
from fedpeft.errors import RunError

if TYPE_CHECKING:
    from fedpeft.config import Experiment


def rehearse(experiment: "Experiment", settings: Sequence[str], folder: Path) -> None:
    """Run an experiment without a server, in front of the user.

    Args:
        experiment: what the peers train on.
        settings: `key=value`, of how they talk.
        folder: of the run.

    Raises:
        RunError: peers of a log ended with different adapters.
    """
    from fedpeft.config.swarm import load_swarm
    from fedpeft.runtime.simulated.rehearsal import Rehearsal

    swarm, peers = load_swarm(settings), experiment.sites
    with out.status("preparing") as status:
        running = Rehearsal(experiment, swarm, folder, status.update)
    out.print(f"[bold]{experiment.model.name}[/], {running.space.numel:,} trainable parameters")
    out.print(f"{peers} peers by {experiment.data.partition} hold {sum(running.sizes)} examples", markup=False)
    out.print(f"mode {swarm.mode}, topology {swarm.topology}, no server\n")
    began, sent = time.monotonic(), 0
    rows = running.run()
    while True:
        with out.status("training and exchanging"):
            row = next(rows, None)
        if row is None:
            break
        sent += row["sent_bytes"]
        out.print("  ".join(f"{name} {text}" for name, text in _told(row, peers).items()), highlight=False)
    out.print(f"\na peer sent {size(sent / peers)} in all, {time.monotonic() - began:.0f} s")
    out.print(f"adapter  {folder / 'adapter'}")
    if not running.mode.agree():
        raise RunError(f"{running.mode.stand()['agree']} of {peers} peers hold one adapter, and the others do not")


def _told(row: Mapping[str, Any], peers: int) -> dict[str, str]:
    told = {"epoch": str(row["epoch"])}
    if "agree" in row:
        told |= {"agree": f"{row['agree']}/{peers}", "hash": row["hash"], "exchanges": str(row["exchanges"])}
    else:
        told["distance"] = f"{row['distance']:.3g} of {row['moved']:.3g}"
    told |= {name: f"{row[name]:.3f}" for name in ("loss", "accuracy") if name in row}
    return told | {"sent/peer": size(row["sent_bytes"] / peers), "seconds": f"{row['epoch_s']:.1f}"}
