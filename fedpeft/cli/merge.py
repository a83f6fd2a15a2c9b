"""`fedpeft merge`: adapters that are there already, by any strategy."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedpeft.cli.application import app
from fedpeft.cli.console import err, out, reported

if TYPE_CHECKING:
    from fedpeft.merging import Merged


def _show_strategies(wanted: bool) -> None:
    if not wanted:
        return
    from fedpeft.strategies import NAMES
    from fedpeft.strategies.capabilities import capabilities

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("strategy", "streams", "needs beyond adapters", "what it does"):
        table.add_column(column, overflow="fold")
    for row in capabilities():
        needs = row.needs.replace("as inside", "").strip(", ")
        says = (inspect.getdoc(NAMES[row.strategy]) or "").partition("\n\n")[0]
        table.add_row(*map(Text, (row.strategy, row.streams, needs, " ".join(says.split()))))
    out.print(table)
    raise typer.Exit


@app.command()
def merge(
    adapters: Annotated[list[Path], typer.Argument(help="Folders of PEFT adapters.", show_default=False)],
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="The merged adapter's folder.", show_default=False)
    ],
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION", help="Such as 'TIES(density=0.2)', or a class of your own.", show_default="Mean()"
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="The mean of LoRA products without loss, in all ranks together.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="2,1,1", help="One for each adapter.", show_default="1")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="An adapter that all were fine-tuned from.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base model, where the adapters name it differently.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of strategies that draw at random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over what is in the folder.")] = False,
    show: Annotated[
        bool,
        typer.Option("--list", is_eager=True, callback=_show_strategies, help="Show the strategies, and end."),
    ] = False,
) -> None:
    """Merge PEFT adapters, made by anyone, into one; the base model is not needed."""
    with reported():
        from fedpeft import merging, strategies

        try:
            numbers = _numbers(weights)
            merging.check_free(folder, [*adapters, *([start] if start else [])], force=force)
            if exact:
                if strategy or start:
                    raise ValueError(
                        "--exact goes with neither --strategy nor --start: it is the mean of whole adapters"
                    )
                merged = merging.stack_adapters(adapters, numbers, base=base)
            else:
                rule = strategies.parse(strategy or "Mean()", imports=True)
                merged = merging.merge_adapters(adapters, rule, numbers, start=start, base=base, seed=seed)
            merged.save(folder, force=force)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        _report(merged, folder)


def _numbers(text: str | None) -> Sequence[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights: expected numbers with commas between them, such as 2,1,1, got {text!r}") from None


def _report(merged: "Merged", folder: Path) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("adapter", overflow="fold")
    for column in ("weight", "parameters", "L2 norm"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in merged.sources.rows:
        table.add_row(Text(str(row.folder)), f"{row.weight:g}", f"{row.space.numel:,}", f"{row.norm:.4g}")
    adapter = merged.adapter
    table.add_row(Text(str(folder)), "", f"{adapter.space.numel:,}", f"{float(adapter.vector.norm()):.4g}")
    out.print(table)
    if merged.doubtful:
        note = (
            f"note: {merged.doubtful[0]!r} (slots of its kind: {len(merged.doubtful)}) is no change from zero, but was "
            "merged as one; give --start, or name a rule for it: by_slot({'head': Mean()}, default=...)"
        )
        err.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    error = merged.product_error()
    out.print(f"merged by {merged.how}", markup=False, highlight=False)
    if error is not None:
        out.print(f"distance from the mean of LoRA products: {error:.2g} of its size", markup=False, highlight=False)
