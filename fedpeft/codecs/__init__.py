"""Codecs: how a delta becomes a few small arrays, and back."""

from typing import Any

from fedpeft import expressions
from fedpeft.codecs.base import (
    Choice,
    Codec,
    Context,
    Field,
    Layout,
    Numbers,
    Part,
    Parts,
    Plane,
    Sketch,
    Symbols,
    Transform,
    take,
)
from fedpeft.codecs.block4 import Block4
from fedpeft.codecs.budget import Budget
from fedpeft.codecs.clip import Clip
from fedpeft.codecs.combine import chain, per_slot
from fedpeft.codecs.cosine import DCT
from fedpeft.codecs.deadzone import DeadZone
from fedpeft.codecs.feedback import ErrorFeedback
from fedpeft.codecs.ferret import Ferret
from fedpeft.codecs.fragments import Fragments
from fedpeft.codecs.identity import Identity
from fedpeft.codecs.logbyte import LogByte
from fedpeft.codecs.lowrank import LowRank
from fedpeft.codecs.magnitude import MagnitudeMask
from fedpeft.codecs.powersgd import PowerSGD
from fedpeft.codecs.public import PublicSupport
from fedpeft.codecs.qsgd import QSGD
from fedpeft.codecs.ranks import Ranks
from fedpeft.codecs.rotated import Rotated
from fedpeft.codecs.srht import SRHT
from fedpeft.codecs.support import RandomMask
from fedpeft.codecs.ternary import Ternary
from fedpeft.codecs.topk import TopK
from fedpeft.codecs.turns import Turns
from fedpeft.codecs.uniform import Uniform

NAMES: dict[str, Any] = {
    "Block4": Block4,
    "Budget": Budget,
    "Clip": Clip,
    "DCT": DCT,
    "DeadZone": DeadZone,
    "ErrorFeedback": ErrorFeedback,
    "Ferret": Ferret,
    "Fragments": Fragments,
    "Identity": Identity,
    "LogByte": LogByte,
    "LowRank": LowRank,
    "MagnitudeMask": MagnitudeMask,
    "PowerSGD": PowerSGD,
    "PublicSupport": PublicSupport,
    "QSGD": QSGD,
    "RandomMask": RandomMask,
    "Ranks": Ranks,
    "Rotated": Rotated,
    "SRHT": SRHT,
    "Ternary": Ternary,
    "TopK": TopK,
    "Turns": Turns,
    "Uniform": Uniform,
    "chain": chain,
    "per_slot": per_slot,
}

__all__ = [
    "DCT",
    "QSGD",
    "SRHT",
    "Block4",
    "Budget",
    "Choice",
    "Clip",
    "Codec",
    "Context",
    "DeadZone",
    "ErrorFeedback",
    "Ferret",
    "Field",
    "Fragments",
    "Identity",
    "Layout",
    "LogByte",
    "LowRank",
    "MagnitudeMask",
    "Numbers",
    "Part",
    "Parts",
    "Plane",
    "PowerSGD",
    "PublicSupport",
    "RandomMask",
    "Ranks",
    "Rotated",
    "Sketch",
    "Symbols",
    "Ternary",
    "TopK",
    "Transform",
    "Turns",
    "Uniform",
    "chain",
    "parse",
    "per_slot",
    "take",
]


def parse(text: str, *, imports: bool = False) -> Codec | ErrorFeedback:
    """The codec that an expression names.

    >>> parse("ErrorFeedback(Ternary(density=0.1))")
    ErrorFeedback(codec=Ternary(density=0.1, scale='mean', threshold='slot', context=False), decay=1.0, clip=None)

    Args:
        text: an expression over the names of this package.
        imports: admit dotted paths to other classes, and import them; never for text from a wire.

    Raises:
        ConfigError: the text is no such expression.
    """
    codec: Codec | ErrorFeedback = expressions.parse(text, Codec | ErrorFeedback, NAMES, imports=imports)
    return codec
