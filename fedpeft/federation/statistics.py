"""What a site sends beside its update: each statistic is a payload of its own, in its own space.

A Fisher information spans more powers of two than fp16 has, and its estimate from a few hundred examples has no more
than two digits: bfloat16 has the range of float32 in two bytes. Grams are few, and stay float32.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs import Codec, Context, Identity
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.federation import broadcast
from fedpeft.space import Space
from fedpeft.strategies.statistics import check_statistic, statistic_space
from fedpeft.training import Encoded, Measuring, Trainer

EXAMPLES = {"fisher": 256, "gram": 256, "head": 4096}  # of a site, at most, that a statistic is measured on
AT_START = frozenset({"head"})  # measured on the adapter that a round began at; the others on the trained one
_CODECS: Mapping[str, Codec] = {
    "fisher": Identity("bfloat16"),
    "gram": Identity("float32"),
    "head": Identity("float32"),
}


def measuring(trainer: Trainer, names: Collection[str], space: Space) -> Measuring:
    """The trainer, if it can measure these statistics of an adapter.

    Raises:
        RefusedError: it cannot, or there is no such statistic.
    """
    try:
        for name in names:
            statistic_space(name, space)
    except ValueError as error:
        raise RefusedError(Reason.POLICY, f"statistics: {error}") from None
    if not isinstance(trainer, Measuring):
        kind = type(trainer).__name__
        raise RefusedError(
            Reason.POLICY, f"statistics: {kind}, this site's trainer, measures none, was asked for {', '.join(names)}"
        )
    return trainer


def shareable(data: Encoded, least: int) -> Encoded:
    """The examples that a statistic may be measured on: those of classes that have at least so many.

    Raises:
        RefusedError: there are fewer than that.
    """
    counts = Counter(data.targets)
    kept = [i for i, target in enumerate(data.targets) if not data.labels or counts[target] >= least]
    if len(kept) < least:
        raise RefusedError(
            Reason.POLICY, f"statistics: expected at least {least} examples to measure on, got {len(kept)}"
        )
    if len(kept) == len(data):
        return data
    targets: Any = tuple(data.targets[i] for i in kept)
    return Encoded(tuple(data.tokens[i] for i in kept), targets, tuple(sorted(set(targets))))


def pack(statistics: Mapping[str, Float[Tensor, " s"]], space: Space, run: bytes, ctx: Context) -> list[bytes]:
    """A payload for each statistic, in their order."""
    payloads = []
    for name, vector in statistics.items():
        own, codec = statistic_space(name, space), _CODECS[name]
        payloads.append(broadcast.pack(codec.encode(vector, own, ctx), codec, own, run, ctx))
    return payloads


def unpack(name: str, payload: bytes | memoryview, space: Space, run: bytes, ctx: Context) -> Float[Tensor, " s"]:
    """The statistic in a payload that came from outside.

    Raises:
        PayloadError: the bytes are not such a payload, or it holds what no such statistic can be.
    """
    vector = broadcast.unpack(payload, _CODECS[name], statistic_space(name, space), run, ctx)
    try:
        check_statistic(name, space, vector)
    except ValueError as error:
        raise PayloadError(Defect.STATISTIC, str(error)) from None
    return vector


def largest(names: Collection[str], space: Space) -> int:
    """The most bytes that the payloads of these statistics can have together.

    Raises:
        ValueError: there is no such statistic, or the adapter has nothing that it is of.
    """
    return sum(broadcast.largest(_CODECS[name], own) for name in names for own in (statistic_space(name, space),))
