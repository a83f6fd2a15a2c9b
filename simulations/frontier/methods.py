"""The methods on the frontier: a codec for the sites' updates, one for the broadcast, and the server's step."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A row.

    Args:
        family: of methods that differ in one number.
        setting: that number, "" where there is one method of the family.
        codec: expression of what encodes updates.
        broadcast: expression of what encodes the global adapter's steps.
        server_optimizer: expression; "": the task's.
        rank: of the LoRA; fp32 is of rank 8, and all bytes are compared with its.
        start: where a round begins, as in `fedpeft.training.Settings`.
        alpha: of the LoRA, which scales its product by alpha / rank; 0: the rank.
        fewer: how many of the task's rounds are made one of as many more local steps.
        longer: how many times the task's local steps a site takes in the whole run.
    """

    family: str
    setting: str
    codec: str
    broadcast: str = "Uniform(bits=4)"
    server_optimizer: str = ""
    rank: int = 8
    start: str = "global"
    alpha: int = 0
    fewer: int = 1
    longer: int = 1

    @property
    def name(self) -> str:
        """By which `--methods` finds it."""
        return f"{self.family}-{self.setting}" if self.setting else self.family


def _family(family: str, codec: str, *settings: str, **more: Any) -> tuple[Method, ...]:
    """A method for each setting, which stands for `#` in the codec."""
    return tuple(Method(family, setting, codec.replace("#", setting), **more) for setting in settings)


FP32 = Method("fp32", "", "Identity()", "Identity()")
METHODS = (
    FP32,
    Method("nf4", "", "Block4(levels='nf4')"),
    *_family("ternary", "ErrorFeedback(Ternary(density=#, scale='norm', context=True))", "0.2", start="own"),
    *_family("budget", "ErrorFeedback(Budget(#))", "5800", "2900", start="own"),
    *_family("budget-global-start", "ErrorFeedback(Budget(#))", "5800"),
    *_family("budget-relative", "ErrorFeedback(Budget(#, error='relative'))", "5800", start="own"),
    *_family("budget-rank2", "ErrorFeedback(Budget(#))", "900", rank=2, start="own"),
    *_family("budget-fewer", "ErrorFeedback(Budget(#))", "3700", start="own", fewer=4),
    *_family(
        "budget-rank2-scaled",
        "ErrorFeedback(Budget(#))",
        "1825",
        rank=2,
        alpha=8,
        start="own",
        fewer=2,
        longer=4,
        server_optimizer="SGD(lr=1.0, momentum=0.5)",
    ),
    *_family("rotated", "Rotated(bits=#)", "1"),
    *_family("sparseloco", "ErrorFeedback(TopK(density=#), decay=0.95)", "0.03"),
    Method("fp32-longer", "4", "Identity()", "Identity()", longer=4),
    Method("fp16", "", "Identity('float16')", "Identity('float16')"),
    *_family("deadzone", "ErrorFeedback(DeadZone(bits=#))", "1.0", start="own"),
    *_family("budget", "ErrorFeedback(Budget(#))", "1880", "1450", start="own"),
    *_family("ternary-mean", "ErrorFeedback(Ternary(density=#, context=True))", "0.05", start="own"),
    *_family("powersgd", "ErrorFeedback(PowerSGD(rank=#, codec=Identity('float16')))", "2", start="own"),
    *_family("lowrank", "ErrorFeedback(LowRank(rank=#))", "1", start="own"),
    *_family("srht", "ErrorFeedback(SRHT(coordinates=#, dtype='logbyte'))", "600", start="own"),
    *_family("ferret", "Ferret(coordinates=#, dtype='float16')", "300"),
    *_family("fedkseed-style", "Ferret(coordinates=#, dtype='float16', directions='run')", "300"),
    *_family("fragments", "ErrorFeedback(Fragments(Budget(#), count=4))", "1450", start="own"),
)
