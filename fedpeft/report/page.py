"""The page: its head, its figures, its tables."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import matplotlib

from fedpeft.durable import write_durably
from fedpeft.report import bars, curves, words
from fedpeft.report.drawing import LOOK
from fedpeft.report.run import Run, read
from fedpeft.report.words import DASH, TITLES


def write(folder: Path) -> Path:
    """Write a run's `report.html`, whole or not at all, and return its path; the same run gives the same bytes.

    Args:
        folder: of the run, with `metrics.jsonl`, `facts.json` and `config.yaml` in it; the run need not be finished.

    Raises:
        JournalError: one of the three is missing or damaged; the message names it.
    """
    page = folder / "report.html"
    write_durably(page, _page(read(folder)).encode())
    return page


def _page(run: Run) -> str:
    facts, plan, here = run.facts, run.facts.experiment, files("fedpeft.report")
    how = {"updates": plan.codec, "broadcast": plan.broadcast, "merged by": plan.strategy}
    changed = f"<p class=note>The run was taken up with <code>rounds: {plan.rounds}</code>.</p>"
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        style=(here / "page.css").read_text(encoding="utf-8"),
        name=escape(facts.name),
        sentence=escape(
            f"{words.many(len(run.sites), 'site')} fine-tuned one adapter of {plan.model.name} ({facts.numel:,} "
            f"trainable parameters) over {words.many(len(run.rounds), 'round')}, "
            f"{'each ' * (len(run.sites) > 1)}on its own examples, and sent only updates of it."
        ),
        how="".join(f"<span>{key} <code>{escape(text)}</code></span> " for key, text in how.items()),
        notices="".join(f"<p class=notice role=note>{escape(text)}</p>\n" for text in _notices(run)),
        tiles="\n".join(
            f"<div><dt>{title}</dt><dd><b>{value}</b><span>{escape(note)}</span></dd></div>"
            for title, value, note in _tiles(run)
        ),
        figures=_figures(run) if run.rounds else "",
        sites=_sites(run),
        rounds=_rounds(run),
        config=changed * (run.configured_rounds != plan.rounds) + f"<pre tabindex=0>{escape(run.config)}</pre>",
        version=escape(facts.version),
    )


def _notices(run: Run) -> Iterable[str]:
    done, planned = len(run.rounds), run.facts.experiment.rounds
    if done < planned:
        yield f"This run is not finished: {done} of {planned} planned rounds are done."
    if done and not run.measured("accuracy"):
        yield "Accuracy was not measured: nothing was evaluated on held-out examples, or only the loss."


def _tiles(run: Run) -> Iterable[tuple[str, str, str]]:
    """Title, value as HTML, and note."""
    done, planned = len(run.rounds), run.facts.experiment.rounds
    yield _reached(run)
    for title, way in (("Sent by a site", "up"), ("Received by a site", "down")):
        sent, dense = run.total(f"{way}_bytes"), run.total(f"{way}_bytes_fp32")
        cost = f"{words.ratio(sent, dense)} of fp32 LoRA; {words.bits(sent, dense)}\u00a0bits\u00a0per\u00a0parameter"
        yield title, words.size(sent / run.active) if done else DASH, cost if done else "nothing yet"
    counted, refused = int(run.total("counted")), int(run.total("refused"))
    of = f" <i>of {planned}</i>" if done < planned else ""
    yield "Rounds", f"{done}{of}", f"{words.many(counted, 'update')} counted, {refused} refused"
    seconds = run.total("round_s")
    yield (
        "Time",
        words.duration(seconds) if done else DASH,
        f"{words.duration(seconds / done)} a round" if done else "nothing yet",
    )


def _reached(run: Run) -> tuple[str, str, str]:
    tests, key = run.facts.test_examples, (run.measured("accuracy", "loss", "train_loss") or ["accuracy"])[0]
    values = [value for value in run.scores(key).values() if value is not None]
    if not values:
        return TITLES[key], DASH, "not measured"
    before = f"{words.score(key, values[0])} <i>→</i> " if len(values) > 1 else ""
    note = f"on {tests:,} held-out examples" if key != "train_loss" else "mean over sites"
    if key == "accuracy" and tests:
        error = math.sqrt(max(0.0, values[-1] * (1 - values[-1])) / tests)
        note += f", ±\u00a0{100 * error:.1f}\u00a0points"
    return TITLES[key], before + words.score(key, values[-1]), note


def _figures(run: Run) -> str:
    keys = run.measured("accuracy", "loss") or ["train_loss"]
    with matplotlib.rc_context(LOOK):
        reached = [draw(run, key) for draw in (curves.against_rounds, curves.against_bytes) for key in keys]
        cost = [bars.bytes_of_sites(run, way) for way in ("up", "down")]
        cost += [bars.time_of_rounds(run), bars.time_of_stages(run)]
    groups = {"What was reached": "\n".join(reached), "What it cost": "\n".join(cost)}
    return "\n".join(f"<h2>{title}</h2>\n<div class=figures>\n{cards}\n</div>" for title, cards in groups.items())


def _sites(run: Run) -> str:
    rows = []
    for name, traffic in run.sites.items():
        known = run.facts.sites.get(name)
        up, down = (words.size(sum(getattr(t, key) for t in traffic)) for key in ("up_bytes", "down_bytes"))
        classes = known.labels if known else None
        labels = f"{classes} of {run.facts.labels}" if classes is not None and run.facts.labels else DASH
        rows.append([name, f"{known.examples:,}" if known else DASH, labels, len(traffic), up, down])
    return _table("Sites", ["site", "examples", "labels", "rounds counted", "sent", "received"], rows)


def _rounds(run: Run) -> str:
    heads = [
        "round",
        "loss",
        "accuracy",
        "training loss",
        "product error",
        "learning rate",
        "sent a site",
        "received a site",
    ]
    heads += ["bits up", "bits down", "counted", "refused", "seconds"]
    before = [words.score(key, run.facts.before.get(key)) for key in ("loss", "accuracy")]
    rows: list[list[object]] = [["before", *before, *[DASH] * 10]] if any(run.facts.before.values()) else []
    rows += [
        [
            row.round,
            *(words.score(key, getattr(row, key)) for key in ("loss", "accuracy", "train_loss", "product_error")),
            f"{row.learning_rate:.3g}",
            *(words.size(sent / max(row.counted, 1)) for sent in (row.up_bytes, row.down_bytes)),
            words.bits(row.up_bytes, row.up_bytes_fp32),
            words.bits(row.down_bytes, row.down_bytes_fp32),
            row.counted,
            row.refused,
            f"{row.round_s:.1f}",
        ]
        for row in run.rounds
    ]
    return _table("Rounds", heads, rows)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th scope=col>{head}</th>" for head in heads)
    body = "\n".join(
        f"<tr><th scope=row>{escape(str(row[0]))}</th>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class=scroll tabindex=0 role=region aria-label="{title}">{table}</div>'
