"""What is in a run, an adapter's folder or a payload's file, as tables."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fedpeft import wire
from fedpeft.adapters import Adapter
from fedpeft.errors import FedpeftError


def tables(path: Path) -> Iterator[Table]:
    """The tables that describe a path.

    Raises:
        FedpeftError: nothing there is of this project.
    """
    if (path / "config.yaml").exists():
        yield from _run(path)
    elif (path / "adapter_config.json").exists():
        yield from _adapter(path)
    elif path.is_file():
        yield from _payload(path.read_bytes())
    else:
        raise FedpeftError(f"{path}: expected a run's folder, an adapter's folder or a payload's file")


def _adapter(path: Path) -> Iterator[Table]:
    adapter = Adapter.load(path)
    facts = _facts(f"adapter {path}")
    facts.add_row(*_plain("method", str(adapter.config.get("peft_type"))))
    facts.add_row(*_plain("base model", str(adapter.config.get("base_model_name_or_path"))))
    facts.add_row(*_plain("parameters", f"{adapter.space.numel:,}"))
    facts.add_row(*_plain("fingerprint", adapter.space.fingerprint.hex()))
    facts.add_row(*_plain("L2 norm", f"{float(adapter.vector.norm()):.6g}"))
    yield facts
    slots = Table(box=None, header_style="bold")
    slots.add_column("slot", overflow="fold")
    for column in ("role", "shape", "parameters", "L2 norm"):
        slots.add_column(column, no_wrap=True)
    for slot in adapter.space.slots:
        norm = float(adapter.space.view(adapter.vector, slot.name).norm())
        slots.add_row(*_plain(slot.name, slot.role, str(slot.shape), f"{slot.numel:,}", f"{norm:.4g}"))
    yield slots


def _payload(data: bytes) -> Iterator[Table]:
    header, parts = wire.inspect(data)
    facts = _facts("payload")
    facts.add_row(*_plain("codec", header.codec))
    facts.add_row(*_plain("round, client", f"{header.round}, {header.client or 'the server'}"))
    facts.add_row(*_plain("run", header.run.hex()))
    facts.add_row(*_plain("fingerprint", header.fingerprint.hex()))
    facts.add_row(*_plain("parameters", f"{header.numel:,}"))
    facts.add_row(*_plain("bytes", f"{len(data):,}"))
    facts.add_row(*_plain("bits per parameter", f"{8 * len(data) / max(header.numel, 1):.4f}"))
    facts.add_row(*_plain("checksum", "correct"))
    yield facts
    table = Table("part", "coder", "numbers", "bytes", "bits each", box=None, header_style="bold")
    for part in parts:
        bits = f"{8 * part.payload_bytes / part.numel:.4f}" if part.numel else "-"
        table.add_row(*_plain(part.name, part.coder, f"{part.numel:,}", f"{part.payload_bytes:,}", bits))
    yield table


def _run(path: Path) -> Iterator[Table]:
    facts = _facts(f"run {path}")
    try:
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        known = json.loads((path / "facts.json").read_text())
    except (OSError, ValueError) as error:
        raise FedpeftError(f"{path}: the run was stopped before it began, or a file is damaged: {error}") from None
    experiment = known["experiment"]
    facts.add_row(*_plain("rounds", f"{len(rows)} of {experiment['rounds']}"))
    for key in ("codec", "broadcast", "strategy", "server_optimizer", "peft"):
        facts.add_row(*_plain(key.replace("_", " "), experiment[key]))
    facts.add_row(*_plain("base model", f"{experiment['model']['name']} {known['base_sha256'][:16]}..."))
    facts.add_row(*_plain("parameters", f"{known['numel']:,} in {known['slots']} slots"))
    for direction in ("up", "down"):
        sent, dense = (sum(row[f"{direction}_bytes{suffix}"] for row in rows) for suffix in ("", "_fp32"))
        if sent:
            bits = 32 * sent / dense
            facts.add_row(
                f"{direction}", f"{sent:,} bytes, {bits:.3f} bits per parameter, 1/{dense / sent:.1f} of fp32"
            )
    if rows and rows[-1]["accuracy"] is not None:
        facts.add_row(*_plain("accuracy", f"{known['before']['accuracy']:.3f} -> {rows[-1]['accuracy']:.3f}"))
    yield facts
    if (path / "adapter").exists():
        yield from _adapter(path / "adapter")


def _plain(*cells: str) -> Iterator[Text]:
    """Text from outside, which may hold what rich takes for markup."""
    return (Text(cell) for cell in cells)


def _facts(title: str) -> Table:
    table = Table(box=None, show_header=False, title=Text(title), title_justify="left", title_style="bold")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table
