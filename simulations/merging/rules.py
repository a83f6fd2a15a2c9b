"""The rules that are compared, each with the settings that it is used with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A strategy and what goes with it.

    Args:
        name: in rows and on the command line.
        strategy: its expression.
        server_optimizer: its expression.
        codec: what is around the updates' codec, which stands as {}.
        training: settings of local training that differ.
        heads: whether it is for classifiers alone.
    """

    name: str
    strategy: str
    server_optimizer: str = "SGD(lr=1.0)"
    codec: str = "{}"
    training: Mapping[str, Any] = field(default_factory=dict)
    heads: bool = False


_B = 'Turns({}, ("lora_B head",))'
_TURNS = 'Turns({}, ("lora_B head", "lora_A head"))'
_CARRIED = {"slots": "carried"}
RULES = (
    Rule("mean", "Mean()"),
    Rule("mean, all labels", "Mean()", training={"labels": "all"}, heads=True),
    Rule("mean, three steps", "Mean()", "SGD(lr=3.0)"),
    Rule("mean, momentum", "Mean()", "SGD(lr=1.0, momentum=0.5)"),
    Rule("mean, fedprox", "Mean()", training={"proximal": 0.1}),
    Rule("seen", "SeenMean()", heads=True),
    Rule("seen, calibrated", "SeenMean()", training={"calibration": 1.0}, heads=True),
    Rule("seen, a third", "SeenMean()", training={"learning_rate": 2e-3}, heads=True),
    Rule("seen, ridge", "RidgeHead(SeenMean(), every=5)", heads=True),
    Rule("seen, ridge once", "RidgeHead(SeenMean(), every=10)", heads=True),
    Rule("ffa", "SeenMean()", codec=_B, training=_CARRIED),
    Rule("rolora", "SeenMean()", codec=_TURNS, training=_CARRIED),
    Rule("ffa, regmean", "by_slot({'lora_B': RegMean()}, default=SeenMean())", codec=_B, training=_CARRIED),
    Rule("flexlora", "by_slot({'*.lora_*': FlexLoRA()}, default=SeenMean())"),
    Rule("subspace", "by_slot({'*.lora_*': SubspaceStep()}, default=SeenMean())"),
    Rule("knots", "by_slot({'*.lora_*': KnOTS()}, default=SeenMean())"),
    Rule("iso-c", "by_slot({'*.lora_*': IsoC(SubspaceStep())}, default=SeenMean())"),
    Rule("ties", "TIES()"),
    Rule("ties, a third", "TIES(scale=0.33)"),
    Rule("ties, margin", "TIES(trim='none', aggregate='margin')"),
    Rule("majority", "Majority()"),
    Rule("majority, a third", "Scaled(Majority(), 0.33)"),
    Rule("ternary median", "TernaryMedian()"),
    Rule("dare", "DARE(SeenMean(), 0.5)"),
    Rule("fisher", "by_slot({'*.lora_*': Fisher()}, default=SeenMean())"),
    Rule("pcb", "PCB()"),
    Rule("consensus", "Consensus()"),
    Rule("opcm", "by_slot({'*.lora_*': OPCM()}, default=SeenMean())"),
    Rule("geometric median", "GeometricMedian()"),
    Rule("median", "Median()"),
    Rule("trimmed mean", "TrimmedMean(0.1)"),
    Rule("ternary trimmed mean", "TernaryTrimmedMean(0.1)"),
    Rule("krum", "Krum(1)"),
    Rule("multi-krum", "Krum(1, keep=7)"),
    Rule("bulyan", "Bulyan(1)"),
    Rule("centred clip", "CentredClip(2.0, iterations=3)"),
    Rule("clip norm", "ClipNorm(SeenMean(), 2.0)"),
    Rule("della", "DELLA(SeenMean(), 0.5)"),
    Rule("breadcrumbs", "Breadcrumbs(SeenMean(), 0.5)"),
    Rule("allocation", "RankAllocation(SeenMean(), keep=0.5)"),
    Rule("mats", "by_slot({'*.lora_*': MaTS()}, default=SeenMean())"),
)
UPDATES = {"ternary": "Ternary(density=0.2, scale='norm')", "dense": "Identity()"}
