"""A run's folder, as far as the report reads it."""

import json
from pathlib import Path
from typing import Any

import yaml

NUMEL = 1000


def make(
    path: Path,
    sites: int = 3,
    rounds: int = 4,
    planned: int | None = None,
    evaluate: bool = True,
    name: str = "demo",
    names: list[str] | None = None,
    **changes: Any,
) -> Path:
    """Write the three files; `changes` go into each round."""
    names = names or [f"site-{i}" for i in range(1, sites + 1)]
    rows = [
        {
            "round": number,
            "loss": 3 / number if evaluate else None,
            "accuracy": 1 - 0.9 / number if evaluate else None,
            "train_loss": 2 / number,
            "learning_rate": 0.003,
            "up_bytes": (100 + number) * len(names),
            "down_bytes": 500 * len(names),
            "up_bytes_fp32": 4 * NUMEL * len(names),
            "down_bytes_fp32": 4 * NUMEL * len(names),
            "counted": len(names),
            "refused": 0,
            "train_s": 2.0,
            "encode_s": 0.01,
            "fold_s": 0.01,
            "evaluate_s": 0.5 if evaluate else 0.0,
            "round_s": 3.0,
            "sites": {site: {"up_bytes": 100 + number, "down_bytes": 500, "weight": 10.0} for site in names},
        }
        | changes
        for number in range(1, rounds + 1)
    ]
    experiment = {
        "rounds": planned or max(rounds, 1),
        "model": {"name": "tiny"},
        "codec": "Ternary(density=0.2)",
        "broadcast": "Uniform(bits=4)",
        "strategy": "Mean()",
    }
    facts = {
        "name": name,
        "version": "0.1.0",
        "experiment": experiment,
        "numel": NUMEL,
        "labels": 5,
        "test_examples": 100 if evaluate else 0,
        "sites": {site: {"examples": 70, "labels": 4} for site in names},
        "before": {"loss": 3.1, "accuracy": 0.05} if evaluate else {},
    }
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "facts.json").write_text(json.dumps(facts))
    (path / "config.yaml").write_text(yaml.safe_dump(experiment))
    return path
