"""CLINC150 (150 intents) over sites that hold different intents, against the same data trained centralised.

`FEDPEFT_DATA=... python -m simulations.clinc150 --sites 10 --partition dirichlet:0.5`. The dataset is Larson et al.,
2019, arXiv 1909.02027 (CC-BY-3.0); the folder `clinc150/` of FEDPEFT_DATA holds its `data_full.json`.
Rounds are shown on 500 test utterances; both accuracies of the table are on all 4,500.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from fedpeft.config import Experiment
from fedpeft.data import Corpus, Example, Source
from fedpeft.errors import DataError
from fedpeft.random import Purpose, Stream
from fedpeft.simulation import Simulation
from simulations import table
from simulations.central import central

COLUMNS = ("partition", "codec", "strategy", "seed", "rounds", "accuracy", "central_accuracy", "up_bytes_per_site",
           "up_ratio_to_fp32", "down_bytes_per_site", "down_ratio_to_fp32")  # fmt: skip


@dataclass(frozen=True)
class Clinc150(Source):
    """CLINC150's in-scope utterances: `per_intent` of 100 for training, all 4,500 of its test set; groups are domains.

    Args:
        per_intent: utterances for training.
        classes: "intents", 150 of them, or "domains", 10 of 15 intents each.
    """

    per_intent: int = 50
    classes: Literal["intents", "domains"] = "intents"

    def load(self, seed: int) -> Corpus:
        """Read `clinc150/` in FEDPEFT_DATA; the stream draws which utterances are used."""
        folder = Path(os.environ.get("FEDPEFT_DATA", "")) / "clinc150"
        try:
            raw = json.loads((folder / "data_full.json").read_text())
            domains = json.loads((folder / "domains.json").read_text())
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror}; FEDPEFT_DATA must hold clinc150/") from None
        domain = {intent: name for name, intents in domains.items() for intent in intents}
        intents = sorted(domain)
        labels = intents if self.classes == "intents" else sorted(domains)

        def example(text: str, intent: str) -> Example:
            label = intent if self.classes == "intents" else domain[intent]
            return Example(text, labels.index(label), group=domain[intent])

        texts: dict[str, list[str]] = {intent: [] for intent in intents}
        for text, intent in raw["train"]:
            texts[intent].append(text)
        train = tuple(
            example(of[i], intent)
            for place, (intent, of) in enumerate(texts.items())
            for i in Stream(seed, Purpose.SPLIT, 2, place).permutation(len(of))[: self.per_intent].tolist()
        )
        test = tuple(example(text, intent) for text, intent in raw["test"])
        return Corpus("clinc150", train, test, tuple(labels))


def experiment(options: Any, partition: str) -> Experiment:
    """The federated run."""
    return Experiment.model_validate(
        {
            "name": "clinc150",
            "seed": options.seed,
            "sites": options.sites,
            "rounds": 1 if options.quick else options.rounds,
            "model": {"max_length": 32, "threads": options.threads},
            "data": {
                "source": f"simulations.clinc150.Clinc150(per_intent={options.per_intent})",
                "partition": partition,
                "test_examples": 50 if options.quick else 500,
            },
            "training": {
                "local_steps": 2 if options.quick else 10,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "labels": options.labels,
                "schedule": options.schedule,
            },
            "codec": options.codec,
            "broadcast": options.broadcast,
            "strategy": options.strategy,
            "server_optimizer": options.server_optimizer,
        }
    )


def main() -> int:
    """Run and print."""
    parser = table.arguments(__doc__ or "")
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--partition", default="dirichlet:0.5", help="iid | dirichlet:ALPHA | by-label")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--per-intent", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=7e-3)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--labels", default="own")
    parser.add_argument("--codec", default="ErrorFeedback(Ternary(density=0.2))")
    parser.add_argument("--broadcast", default="Uniform(bits=4)")
    parser.add_argument("--strategy", default="Mean()")
    parser.add_argument("--server-optimizer", default="SGD(lr=3.0)")
    parser.add_argument("--central-epochs", type=int, default=8, help="0: leave the centralised run out")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not (Path(os.environ.get("FEDPEFT_DATA", "")) / "clinc150").is_dir():
        print("skipped: FEDPEFT_DATA does not name a folder that holds clinc150/")
        return 0
    kind, _, value = options.partition.partition(":")
    partition = {"iid": "IID()", "dirichlet": f"Dirichlet(alpha={value or 0.5})", "by-label": "ByLabel()"}[kind]
    chosen = experiment(options, partition)
    progress = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Simulation(chosen, Path(folder)) as simulation:
        for row in simulation.run():
            progress.print(f"round {row['round']}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}", style="dim")
        rows, accuracy = simulation.server.history(), simulation.measure()["accuracy"]
    total = {key: sum(row[key] for row in rows) for key in rows[0] if "_bytes" in key}
    epochs = options.central_epochs
    shown = {
        "task": "clinc150",
        "partition": partition,
        "codec": chosen.codec,
        "strategy": chosen.strategy,
        "seed": options.seed,
        "rounds": len(rows),
        "accuracy": accuracy,
        "central_accuracy": central(chosen, epochs, 4 if options.quick else None)["accuracy"] if epochs else None,
        "up_bytes_per_site": total["up_bytes"] / options.sites,
        "down_bytes_per_site": total["down_bytes"] / options.sites,
        "up_ratio_to_fp32": total["up_bytes"] / total["up_bytes_fp32"],
        "down_ratio_to_fp32": total["down_bytes"] / total["down_bytes_fp32"],
    }
    table.show(f"CLINC150, {options.sites} sites, {options.per_intent} utterances an intent", [shown], options, COLUMNS)
    table.save([shown], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
