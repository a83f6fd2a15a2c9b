"""What a site sends beside its update: each statistic is a payload of its own, in its own space.

A Fisher information spans more powers of two than fp16 has, and its estimate from a few hundred examples has no more
than two digits: bfloat16 has the range of float32 in two bytes. Of a Gram, which is symmetric, the upper triangle is
sent, and in float32: what is solved with it loses as many digits as the Gram's condition has.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedpeft.codecs import Codec, Context, Identity
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.federation import broadcast
from fedpeft.random import Stream
from fedpeft.space import Slot, Space
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
    _check_enough(len(kept), least)
    return data if len(kept) == len(data) else _chosen(data, kept)


def drawn(name: str, data: Encoded, least: int, most: int, order: Stream) -> Encoded:
    """Those of shareable examples that a statistic is measured on: at most so many, drawn without replacement.

    A head's sums are of each class, so the classes must have at least `least` examples among those that are drawn.

    Raises:
        RefusedError: there are fewer than `least`.
    """
    most = min(most, EXAMPLES[name])
    some = data if len(data) <= most else _chosen(data, order.permutation(len(data))[:most])
    _check_enough(len(some), least)
    return shareable(some, least) if name == "head" else some


def _check_enough(came: int, least: int) -> None:
    if came < least:
        raise RefusedError(Reason.POLICY, f"statistics: expected at least {least} examples to measure on, got {came}")


def _chosen(data: Encoded, rows: Iterable[int]) -> Encoded:
    kept = [int(row) for row in rows]
    targets: Any = tuple(data.targets[i] for i in kept)
    return Encoded(tuple(data.tokens[i] for i in kept), targets, tuple(sorted(set(targets))) if data.labels else ())


def pack(statistics: Mapping[str, Float[Tensor, " s"]], space: Space, run: bytes, ctx: Context) -> list[bytes]:
    """A payload for each statistic, in their order."""
    payloads = []
    for name, vector in statistics.items():
        own, sent, codec = statistic_space(name, space), sent_space(name, space), _CODECS[name]
        parts = codec.encode(vector if sent == own else vector[_mask(own)], sent, ctx)
        payloads.append(broadcast.pack(parts, codec, sent, run, ctx))
    return payloads


def unpack(name: str, payload: bytes | memoryview, space: Space, run: bytes, ctx: Context) -> Float[Tensor, " s"]:
    """The statistic in a payload that came from outside.

    Raises:
        PayloadError: the bytes are not such a payload, or it holds what no such statistic can be.
    """
    own, sent = statistic_space(name, space), sent_space(name, space)
    vector = broadcast.unpack(payload, _CODECS[name], sent, run, ctx)
    vector = vector if sent == own else _mirrored(vector, own)
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
    return sum(broadcast.largest(_CODECS[name], own) for name in names for own in (sent_space(name, space),))


@lru_cache(maxsize=64)
def sent_space(name: str, space: Space) -> Space:
    """The space in which a statistic of an adapter travels: its own, with what a symmetric matrix says twice left out.

    The first rows of a slot of "gram" or "head", as many as it is wide, are a Gram: of row i the columns from i on are
    sent, row after row, and then the other rows.

    >>> sent_space("gram", Space((Slot("q.lora_B", (7, 2), "lora_B"),))).slots
    (Slot(name='q.lora_B', shape=(3,), role='gram'),)

    Raises:
        ValueError: there is no such statistic, or the adapter has nothing that it is of.
    """
    own = statistic_space(name, space)
    if name == "fisher":
        return own
    slots = [Slot(slot.name, (slot.numel - math.comb(slot.shape[1], 2),), slot.role) for slot in own.slots]
    return Space(tuple(slots), own.config, own.base)


def _mask(own: Space) -> Bool[Tensor, " s"]:
    """Of which of its numbers a statistic of Grams is sent."""
    masks = []
    for slot in own.slots:
        sent = torch.ones(slot.shape, dtype=torch.bool).triu()
        sent[slot.shape[1] :] = True
        masks.append(sent.reshape(-1))
    return torch.cat(masks)


def _mirrored(sent: Float[Tensor, " t"], own: Space) -> Float[Tensor, " s"]:
    """A statistic of Grams from what was sent of it."""
    vector = sent.new_zeros(own.numel)
    vector[_mask(own)] = sent
    for slot in own.slots:
        gram = own.view(vector, slot.name)[: slot.shape[1]]
        gram += gram.triu(1).T
    return vector
