"""The row of a round in a run's metrics: what went over the wire, and what sites said of themselves."""

from collections.abc import Mapping, Sequence

from fedpeft.federation.journal import Journal, Record
from fedpeft.federation.plan import Plan
from fedpeft.space import Space


def row(
    plan: Plan,
    space: Space,
    journal: Journal,
    number: int,
    accepted: Sequence[Record],
    scores: Mapping[str, float],
) -> Record:
    """Bytes are those of whole messages as sent, refused and repeated ones too.

    The fp32 baseline is 4 bytes a parameter, once for each site asked and once for each update counted.

    Args:
        plan: the rules.
        space: of the adapter.
        journal: of the run.
        number: of the round.
        accepted: records of the updates that were counted.
        scores: of the adapter that it led to.
    """
    asks = [record["bytes"] for record in journal.of("ASK", number)]
    arrived = journal.of("ACCEPT", number) + journal.of("REFUSE", number)
    dense = 4 * space.numel

    def total(name: str) -> float:
        return float(sum(max(0.0, record["metrics"].get(name, 0.0)) for record in accepted))

    return {
        "round": number,
        "loss": scores.get("loss"),
        "accuracy": scores.get("accuracy"),
        "train_loss": _mean_loss(accepted),
        **_own_accuracy(accepted),
        "learning_rate": plan.learning_rate(number),
        "up_bytes": sum(record["up_bytes"] for record in arrived),
        "down_bytes": sum(sum(ask.values()) for ask in asks),
        "up_bytes_fp32": dense * len(accepted),
        "down_bytes_fp32": dense * len({node for ask in asks for node in ask}),
        "counted": len(accepted),
        "refused": len(arrived) - len(accepted),
        "train_s": total("train_s"),
        "encode_s": total("encode_s"),
        "sites": {
            record["node"]: {
                "up_bytes": record["up_bytes"],
                "down_bytes": sum(ask.get(record["node"], 0) for ask in asks),
                "weight": record["weight"],
            }
            for record in accepted
        },
    }


def _mean_loss(accepted: Sequence[Record]) -> float | None:
    """Of the sites that trained, by weight; None where none did."""
    told = [(record["weight"], record["metrics"]["loss"]) for record in accepted if "loss" in record["metrics"]]
    return sum(weight * loss for weight, loss in told) / sum(weight for weight, _ in told) if told else None


def _own_accuracy(accepted: Sequence[Record]) -> dict[str, float]:
    """The mean over sites, each as it measured itself; nothing where none did."""
    found = (record["metrics"].get("own_accuracy") for record in accepted)
    told = [min(max(accuracy, 0.0), 1.0) for accuracy in found if accuracy is not None]
    return {"own_accuracy": sum(told) / len(told)} if told else {}
