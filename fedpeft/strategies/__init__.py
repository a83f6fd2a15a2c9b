"""Strategies: how many deltas become one."""

from typing import Any

from fedpeft import expressions
from fedpeft.strategies.allocation import RankAllocation, rank_votes
from fedpeft.strategies.approval import Approval
from fedpeft.strategies.base import Additive, Broadcast, Context, Fold, Strategy, Summands, Update
from fedpeft.strategies.bulyan import Bulyan
from fedpeft.strategies.by_slot import by_slot
from fedpeft.strategies.centred_clip import CentredClip
from fedpeft.strategies.consensus import Consensus
from fedpeft.strategies.counts import Majority, TernaryMedian, TernaryTrimmedMean
from fedpeft.strategies.evolved import optimise_weights
from fedpeft.strategies.factors import Factors
from fedpeft.strategies.fedex import with_residual
from fedpeft.strategies.fisher import Fisher
from fedpeft.strategies.flexlora import FlexLoRA, best_mean
from fedpeft.strategies.flora import stacked
from fedpeft.strategies.fltrust import FLTrust
from fedpeft.strategies.frank_wolfe import frank_wolfe
from fedpeft.strategies.frl import RankVote
from fedpeft.strategies.geometric_median import GeometricMedian
from fedpeft.strategies.iso import IsoC, iso_cts
from fedpeft.strategies.knots import KnOTS
from fedpeft.strategies.krum import Krum
from fedpeft.strategies.lora import factors, modules
from fedpeft.strategies.mats import MaTS
from fedpeft.strategies.mean import Mean
from fedpeft.strategies.medians import Median, TrimmedMean
from fedpeft.strategies.opcm import OPCM
from fedpeft.strategies.pcb import PCB
from fedpeft.strategies.product_error import product_error
from fedpeft.strategies.regmean import RegMean
from fedpeft.strategies.ridge_head import RidgeHead
from fedpeft.strategies.scaling import ClipNorm, Scaled
from fedpeft.strategies.seen import SeenMean
from fedpeft.strategies.sparsify import DARE, DELLA, Breadcrumbs
from fedpeft.strategies.subspace import SubspaceStep
from fedpeft.strategies.ties import TIES

NAMES: dict[str, Any] = {
    "DARE": DARE,
    "DELLA": DELLA,
    "OPCM": OPCM,
    "PCB": PCB,
    "TIES": TIES,
    "Approval": Approval,
    "Breadcrumbs": Breadcrumbs,
    "Bulyan": Bulyan,
    "CentredClip": CentredClip,
    "ClipNorm": ClipNorm,
    "Consensus": Consensus,
    "FLTrust": FLTrust,
    "Fisher": Fisher,
    "FlexLoRA": FlexLoRA,
    "GeometricMedian": GeometricMedian,
    "IsoC": IsoC,
    "KnOTS": KnOTS,
    "Krum": Krum,
    "MaTS": MaTS,
    "Majority": Majority,
    "Mean": Mean,
    "Median": Median,
    "RankAllocation": RankAllocation,
    "RankVote": RankVote,
    "RegMean": RegMean,
    "RidgeHead": RidgeHead,
    "Scaled": Scaled,
    "SeenMean": SeenMean,
    "SubspaceStep": SubspaceStep,
    "TernaryMedian": TernaryMedian,
    "TernaryTrimmedMean": TernaryTrimmedMean,
    "TrimmedMean": TrimmedMean,
    "by_slot": by_slot,
}

__all__ = [
    "DARE",
    "DELLA",
    "OPCM",
    "PCB",
    "TIES",
    "Additive",
    "Approval",
    "Breadcrumbs",
    "Broadcast",
    "Bulyan",
    "CentredClip",
    "ClipNorm",
    "Consensus",
    "Context",
    "FLTrust",
    "Factors",
    "Fisher",
    "FlexLoRA",
    "Fold",
    "GeometricMedian",
    "IsoC",
    "KnOTS",
    "Krum",
    "MaTS",
    "Majority",
    "Mean",
    "Median",
    "RankAllocation",
    "RankVote",
    "RegMean",
    "RidgeHead",
    "Scaled",
    "SeenMean",
    "Strategy",
    "SubspaceStep",
    "Summands",
    "TernaryMedian",
    "TernaryTrimmedMean",
    "TrimmedMean",
    "Update",
    "best_mean",
    "by_slot",
    "factors",
    "frank_wolfe",
    "iso_cts",
    "modules",
    "optimise_weights",
    "parse",
    "product_error",
    "rank_votes",
    "stacked",
    "with_residual",
]


def parse(text: str, *, imports: bool = False) -> Strategy:
    """The strategy that an expression names.

    >>> parse("ClipNorm(Mean(), norm=1.0)")
    ClipNorm(strategy=Mean(), norm=1.0)

    Raises:
        ConfigError: the text is no such expression.
    """
    strategy: Strategy = expressions.parse(text, Strategy, NAMES, imports=imports)
    return strategy
