"""One example of every public strategy and of every variant of it, and cohorts to merge."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import (
    DARE,
    DELLA,
    OPCM,
    PCB,
    TIES,
    Approval,
    Breadcrumbs,
    Broadcast,
    Bulyan,
    CentredClip,
    ClipNorm,
    Consensus,
    Context,
    Fisher,
    FlexLoRA,
    FLTrust,
    Fold,
    GeometricMedian,
    IsoC,
    KnOTS,
    Krum,
    Majority,
    MaTS,
    Mean,
    Median,
    RankAllocation,
    RankVote,
    RegMean,
    RidgeHead,
    Scaled,
    SeenMean,
    Strategy,
    SubspaceStep,
    TernaryMedian,
    TernaryTrimmedMean,
    TrimmedMean,
    Update,
    by_slot,
)
from fedpeft.strategies.statistics import gram_slots, head_slots

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


PEFT = "alone between split proportion weightless"
EXAMPLES = [
    example(Mean()),
    *(example(TIES(trim="none", elect=e, aggregate=a)) for e in ("sum", "count") for a in ("mean", "margin")),
    example(TIES(), "alone weightless"),
    example(TIES(0.5, "global", weights="reference"), "alone split weightless"),
    example(TIES(0.3, "global", aggregate="sum", weights="reference", scale=0.3), "alone between split weightless"),
    *(example(TIES(0.4, elect=e, weights="peft"), PEFT) for e in ("sum", "count")),
    example(TIES(0.4, aggregate="margin", weights="peft", scale=-0.1), PEFT),
    example(TIES(trim="none", aggregate="sum"), "alone between proportion"),
    example(DARE(Mean(), 0.4), "alone between scale"),
    example(DARE(TIES(trim="none"), 0.4, "l1", "shared"), "alone between"),
    example(DARE(Krum(1), 0.4), "alone between scale split weightless"),
    example(DELLA(TIES(trim="none"), 0.6, 0.2), "alone between scale weightless"),
    example(Breadcrumbs(Mean(), 0.5, 0.1), "alone"),
    *(example(Scaled(inner, -2.0), "alone between") for inner in (Mean(), TIES(trim="none"), GeometricMedian())),
    example(ClipNorm(Mean(), 9.0), "alone scale"),
    example(ClipNorm(Krum(1), 9.0), "alone scale split weightless"),
    example(by_slot({"lora_A": Mean(), "*.score.*": TIES()}, default=Mean()), "alone weightless"),
    example(by_slot({"*.lora_?.*": GeometricMedian(), "head": TIES(trim="none")}, default=Fisher())),
    example(by_slot({"lora_B": RegMean(), "head": Krum(1)}, default=Mean()), "between split weightless"),
    *(example(kind, "alone between") for kind in (TernaryMedian(), TernaryTrimmedMean(0.2), TernaryTrimmedMean(0.0))),
    example(Majority(), "alone between"),
    example(Majority(0.5), "alone between scale"),
    *(example(Fisher(floor, normalise)) for floor in (1e-6, 0.1) for normalise in (True, False)),
    *(example(RegMean(*how), "between") for how in ((), (0.0, 1e-3), (1.0, 1e-6, True))),
    *(example(RidgeHead(i), "alone between scale nothing") for i in (Mean(), TIES(trim="none"), GeometricMedian())),
    example(RidgeHead(Krum(1), 2, 1e-3, 1.0), "alone between scale split weightless nothing"),
    example(SeenMean()),
    example(RankVote(), "alone between scale split weightless nothing"),
    example(RankAllocation(TIES(trim="none"), keep=0.5), "alone between scale split weightless nothing"),
    example(RankAllocation(Mean(), keep=1.0)),
    example(Approval(Mean(), 0.3), "alone scale split weightless"),
    example(Approval(Approval(TIES(trim="none"), 0.5), 0.3), "alone scale split weightless"),
    example(Approval(Krum(1), 0.3), "alone scale split weightless"),
    *(example(Krum(*how), "split weightless") for how in ((1,), (0,), (2, 3))),
    *(example(Bulyan(f), "split weightless") for f in (0, 1)),
    example(Median(), "split weightless"),
    *(example(TrimmedMean(fraction), "split weightless") for fraction in (0.0, 0.2, 0.45)),
    example(GeometricMedian()),
    example(GeometricMedian(iterations=1, epsilon=0.1)),
    *(example(CentredClip(*how), "alone scale split weightless") for how in ((3.0,), (5.0, 3))),
    example(FLTrust(), "alone between scale split weightless"),
    *(example(FlexLoRA(rank), "alone between scale nothing") for rank in (None, 2)),
    example(FlexLoRA(ordered=True), "alone between scale nothing"),
    example(SubspaceStep(), "alone between scale nothing"),
    *(example(KnOTS(*how), "alone between scale weightless nothing") for how in ((), (0.5, "layer"))),
    example(KnOTS(1.0), "alone between scale nothing"),
    *(example(IsoC(inner), "alone between scale nothing") for inner in (Mean(), SubspaceStep(), FlexLoRA())),
    *(example(PCB(*how), "alone scale split weightless") for how in ((), (0.5,))),
    example(PCB(1.0, 1.5), "alone between scale split weightless"),
    *(example(Consensus(*how), "split weightless") for how in ((), (1.0, 1), (2.0, 4))),
    *(example(OPCM(alpha), "between order split weightless") for alpha in (0.0, 0.5, 0.9)),
    *(example(MaTS(4, metric), "between") for metric in ("fisher", "gram", "both", "kronecker")),
]  # fmt: skip


def updates(clients: int, kind: str = "normal", space: Space = SPACE) -> list[Update]:
    """Deltas and weights of a cohort; with integers, float64 sums are exact in any order."""
    drawn = _drawn(clients, kind, space)
    return [Update(u.delta.clone(), u.weight, {n: s.clone() for n, s in u.statistics.items()}) for u in drawn]


@lru_cache(maxsize=64)
def _drawn(clients: int, kind: str, space: Space) -> list[Update]:
    draw = np.random.default_rng(clients)
    x, weights = draw.standard_normal((clients, space.numel)), draw.uniform(0.5, 99, clients)
    match kind:
        case "integers":
            x, weights = np.round(4 * x), np.ceil(weights)
        case "ternary":
            x, weights = np.sign(x) * (np.abs(x) > 0.8), np.ones(clients)
        case "huge":
            x = x * 1e30
    deltas = torch.from_numpy(x).float()
    return [Update(d, float(w), statistics(draw, space)) for d, w in zip(deltas, weights, strict=True)]


def statistics(draw: np.random.Generator, space: Space) -> dict[str, torch.Tensor]:
    """Whatever a strategy may need of an update beyond its delta."""
    made = {"fisher": torch.from_numpy(draw.exponential(size=space.numel) ** 3).float()}
    if gram_slots(space):
        activations = [draw.standard_normal((9, slot.shape[1])) for slot in gram_slots(space)]
        made["gram"] = torch.cat([torch.from_numpy(z.T @ z / 9).float().reshape(-1) for z in activations])
    heads = []
    for slot in head_slots(space):
        u = np.concatenate([draw.standard_normal((9, slot.shape[1])), np.ones((9, 1))], 1)
        classes = np.eye(slot.shape[0])[draw.integers(slot.shape[0], size=9)]
        heads.append(torch.from_numpy(np.concatenate([u.T @ u, classes.T @ u]) / 9).float().reshape(-1))
    return made | ({"head": torch.cat(heads)} if heads else {})


def context(strategy: Strategy, space: Space = SPACE) -> Context:
    """What is merged into: a start where the strategy asks for one."""
    told = {"root": torch.from_numpy(np.random.default_rng(8).standard_normal(space.numel))} if strategy.rooted else {}
    return Context(space, START if strategy.anchored and space is SPACE else None, told=told)


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
