"""Rows of all seeds as one line a method, held against fp32."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from simulations.frontier.methods import FP32
from simulations.frontier.outcome import CENTRAL

_MEANS = ("accuracy", "loss", "up_bytes_per_site", "down_bytes_per_site", "bytes_per_site", "up_ratio_to_fp32",
          "down_ratio_to_fp32")  # fmt: skip


def compared(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of federated runs with what the centralised run of their task and seed reached, and fp32's bytes.

    Ratios of bytes are to the fp32 run of the same task and seed, also for a method whose adapter is smaller.
    """
    known = {(row["task"], row["seed"], row["method"]): row for row in rows}
    joined = []
    for row in rows:
        if row["method"] == CENTRAL:
            continue
        central = known.get((row["task"], row["seed"], CENTRAL), {})
        fp32 = known.get((row["task"], row["seed"], FP32.name), {})
        ratios = {
            f"{way}_ratio_to_fp32": row[f"{way}_bytes_per_site"] / fp32[f"{way}_bytes_per_site"]
            for way in ("up", "down")
            if fp32.get(f"{way}_bytes_per_site")
        }
        joined.append(
            {**row, **ratios, "central_accuracy": central.get("accuracy"), "central_loss": central.get("loss")}
        )
    return joined


def summary(rows: Sequence[Mapping[str, Any]], measure: str) -> list[dict[str, Any]]:
    """A line for each method of a task, in the order of the rows: means over seeds, and what is lost to fp32.

    `lost` is in points of accuracy, or in per cent of fp32's nats, over the seeds that both have; `least` and `most`
    are the extremes of the measure. A method is on the frontier where none is better for as few bytes up.

    Args:
        rows: of one task, from `compared`.
        measure: "accuracy" or "loss".
    """
    base = {row["seed"]: row[measure] for row in rows if row["method"] == FP32.name and measure in row}
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        every = [row for row in rows if row["method"] == name]
        same = [row for row in every if measure in row]
        if not same:
            lines.append({**every[0], "seeds": 0, "lost": None, "frontier": "failed"})
            continue
        lost = [_lost(row[measure], base[row["seed"]], measure) for row in same if row["seed"] in base]
        lines.append(
            {
                **same[0],
                **{key: mean(row[key] for row in same) for key in _MEANS},
                "least": min(row[measure] for row in same),
                "most": max(row[measure] for row in same),
                "seeds": len(same) if len(same) == len(every) else f"{len(same)} of {len(every)}",
                "lost": mean(lost) if lost else None,
                "up_smaller": 1 / mean(row["up_ratio_to_fp32"] for row in same),
            }
        )
    for line in lines:
        if line["seeds"]:
            line["frontier"] = "*" if _undominated(line, lines, measure) else ""
    return lines


def _lost(value: float, fp32: float, measure: str) -> float:
    return 100 * (fp32 - value) if measure == "accuracy" else 100 * (value / fp32 - 1)


def _undominated(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], measure: str) -> bool:
    sign = 1 if measure == "accuracy" else -1
    return not any(
        sign * other[measure] >= sign * line[measure]
        and other["up_bytes_per_site"] <= line["up_bytes_per_site"]
        and (other[measure], other["up_bytes_per_site"]) != (line[measure], line["up_bytes_per_site"])
        for other in lines
        if other["seeds"]
    )
