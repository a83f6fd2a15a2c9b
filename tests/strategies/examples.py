"""One example of every public strategy and of every variant of it, and cohorts to merge."""

import json
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Broadcast, Context, Fold, Mean, SignElection, Strategy, Update

CONFIG = json.dumps({"lora_alpha": 6, "peft_type": "LORA", "r": 3})
SPACE = Space(
    (
        Slot("m.0.lora_A.weight", (3, 5), "lora_A"),
        Slot("m.0.lora_B.weight", (7, 3), "lora_B"),
        Slot("m.1.lora_A.weight", (3, 4), "lora_A"),
        Slot("m.1.lora_B.weight", (9, 3), "lora_B"),
        Slot("m.score.bias", (), "head"),
        Slot("m.score.none", (0,), "head"),
        Slot("m.score.weight", (6, 5), "head"),
    ),
    CONFIG,
)
START = torch.from_numpy(np.random.default_rng(99).standard_normal(SPACE.numel)).float()


@dataclass(frozen=True)
class Example:
    """A strategy, and which laws its definition breaks.

    alone: one client in gives its own delta back; between: every coordinate of the result lies between the clients'
    and zero; scale: it commutes with a factor and a sign; split: a weight of k is k clients; proportion: only the
    proportion of weights counts; weightless: a weight of almost zero is absence; order: the clients' order does not
    matter; nothing: zeros stay zeros; huge: deltas of 1e30 stay finite.
    """

    strategy: Strategy
    breaks: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return repr(self.strategy)


def example(strategy: Strategy, breaks: str = "") -> Example:
    """`breaks` names laws, with spaces between."""
    return Example(strategy, frozenset(breaks.split()))


EXAMPLES = [
    example(Mean()),
    *(example(SignElection(elect, average)) for elect in ("sum", "count") for average in ("agreeing", "all")),
]  # fmt: skip


def updates(clients: int, kind: str = "normal", space: Space = SPACE) -> list[Update]:
    """Deltas and weights of a cohort; with integers, float64 sums are exact in any order."""
    draw = np.random.default_rng(clients)
    x, weights = draw.standard_normal((clients, space.numel)), draw.uniform(0.5, 99, clients)
    match kind:
        case "integers":
            x, weights = np.round(4 * x), np.ceil(weights)
        case "ternary":
            x, weights = np.sign(x) * (np.abs(x) > 0.8), np.ones(clients)
        case "huge":
            x = x * 1e30
    return [Update(torch.from_numpy(d).float(), float(w)) for d, w in zip(x, weights, strict=True)]


def context(strategy: Strategy, space: Space = SPACE) -> Context:
    """What is merged into: a start where the strategy asks for one."""
    return Context(space, START if strategy.anchored and space is SPACE else None)


def merged(strategy: Strategy, cohort: list[Update], space: Space = SPACE) -> torch.Tensor:
    """What a strategy makes of a cohort."""
    return strategy.merge(cohort, context(strategy, space))


def contexts(strategy: Strategy, cohort: list[Update]) -> list[Context]:
    """The context of every pass over a cohort."""
    found = [context(strategy)]
    for _ in range(strategy.passes - 1):
        fold = Fold(strategy, found[-1])
        fold.accumulate(*cohort)
        outcome = fold.finalize()
        assert isinstance(outcome, Broadcast)
        found.append(replace(found[-1], told=outcome.told))
    return found
