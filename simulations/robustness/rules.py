"""The rules that are put to the test, and what encodes the updates that they get."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies import Context, FLTrust, Strategy, Update
from fedpeft.strategies.base import check_number


@dataclass(frozen=True)
class TrustsFirst(Strategy):
    """`FLTrust` whose trusted delta is that of the first node, which stands for a site of the server's own."""

    @property
    def least(self) -> int:
        """The server's own, and one more."""
        return 2

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """Merge the others by the first."""
        check_number(self, updates)
        root, *others = updates
        return FLTrust().merge(others, replace(ctx, told={"root": root.delta}))


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Args:
        name: by which `--rules` finds it.
        strategy: expression.
        codec: expression of what encodes updates.
    """

    name: str
    strategy: str
    codec: str = "ErrorFeedback(Ternary(density=0.2, scale='norm'))"


_FP32 = "Identity()"
RULES = (
    Rule("mean", "Mean()"),
    Rule("clip-norm", "ClipNorm(Mean(), 2.0)"),
    Rule("ties", "TIES(trim='none', scale=0.2)"),  # what few sites agree on is as long a step as what all do
    Rule("ties-margin", "TIES(trim='none', elect='count', aggregate='margin')"),
    Rule("majority", "Scaled(Majority(), 0.2)"),
    Rule("clip-majority", "ClipNorm(Scaled(Majority(), 0.2), 2.0)"),
    Rule("median", "Median()"),
    Rule("ternary-median", "TernaryMedian()"),
    Rule("trimmed-mean", "TrimmedMean(0.3)"),
    Rule("geometric-median", "GeometricMedian()"),
    Rule("centred-clip", "CentredClip(2.0, iterations=3)"),
    Rule("krum", "Krum(3)"),
    Rule("multi-krum", "Krum(3, keep=7)"),
    Rule("bulyan", "Bulyan(1)"),
    Rule("fltrust", "simulations.robustness.rules.TrustsFirst()"),
    Rule("fp32-mean", "Mean()", _FP32),
    Rule("fp32-median", "Median()", _FP32),
    Rule("fp32-trimmed-mean", "TrimmedMean(0.3)", _FP32),
    Rule("fp32-geometric-median", "GeometricMedian()", _FP32),
    Rule("fp32-multi-krum", "Krum(3, keep=7)", _FP32),
)
