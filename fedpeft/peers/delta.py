"""Epochs of deltas: each member publishes what it trained, and all peers merge alike."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedpeft import kernels, wire
from fedpeft.codecs import Context, ErrorFeedback, Parts
from fedpeft.errors import Defect, PayloadError
from fedpeft.federation import Plan, broadcast
from fedpeft.federation.plan import ROUNDS_SEEN
from fedpeft.space import Space
from fedpeft.strategies import Context as Merging
from fedpeft.strategies import Update
from fedpeft.ternary import TernaryDelta

_WEIGHT = 4  # bytes before the payload
_RUN = 16  # bytes of the run's name in a payload's header
SHORTER = 0.99  # of the largest norm: codecs round


class DeltaLedger:
    """A ledger whose state is the adapter, and whose epochs are rounds of federated averaging.

    A body is a number of examples (uint32) and a payload. At the end of an epoch every peer decodes the payloads that
    count, adds up those of one member, shortens a sum that is longer than one delta may be, merges the members in
    order, and lets the optimizer step, so all come to the same bits; the members vote on their hash. A strategy that
    decomposes matrices may differ in the last bits between machines, and members that differ find no majority.

    The state is the adapter in float32 and then what the optimizer keeps, little-endian. The adapter stays within the
    range of fp16, coordinate by coordinate, so that whoever brings it to the edge stops nobody else's steps. A step
    that cannot be merged, or leads to what is no number, is left out by all.

    Args:
        plan: codec, strategy, optimizer, training and bounds; its rounds are epochs, and the learning rate of the last
            holds for any beyond.
        space: of the adapter.
        start: the adapter before the first epoch.
        run: 32 bytes.

    Raises:
        ValueError: the plan asks for what only a server can do.
    """

    def __init__(self, plan: Plan, space: Space, start: Float[Tensor, " d"], run: bytes) -> None:
        self.plan, self.space, self._run = plan, space, run[:_RUN]
        kept = plan.optimizer.step(torch.zeros(space.numel), torch.zeros(space.numel), {})[1]
        self._kept = {name: (tensor.numpy().dtype, tuple(tensor.shape)) for name, tensor in sorted(kept.items())}
        self._start = start.detach().clone()
        _check_equals(plan, space, bool(kept))
        self.most_body = _WEIGHT + broadcast.largest(plan.update_codec, space)
        self.most_bytes = 4 * space.numel + sum(tensor.nbytes for tensor in kept.values())

    def beginning(self) -> bytes:
        """The adapter that all begin with."""
        return little(self._start)

    def check(self, body: bytes) -> None:
        """See that a body holds a payload of this run whose delta is finite and not too long.

        Whose it says to be, and of when, is held against its place where it is merged.

        Raises:
            PayloadError: it does not.
        """
        if not _WEIGHT < len(body) <= self.most_body:
            raise PayloadError(Defect.TOO_LARGE, f"expected {_WEIGHT + 1} to {self.most_body} bytes, got {len(body)}")
        weight, payload = _opened(body)
        if not 1 <= weight <= self.plan.largest_weight:
            raise PayloadError(Defect.WEIGHT, f"expected 1 to {self.plan.largest_weight:g} examples, got {weight}")
        said, _ = wire.inspect(payload)
        ctx = self.context(said.round, said.client)
        delta = broadcast.unpack(payload, self.plan.update_codec, self.space, self._run, ctx)
        norm = length(delta)
        if not norm <= self.plan.largest_norm:
            raise PayloadError(Defect.NORM, f"expected an L2 norm of at most {self.plan.largest_norm:g}, got {norm:g}")

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        """The state after the members' deltas of an epoch; as it was, where too few came or they cannot be merged."""
        adapter, kept = self._read(state)
        updates = [update for peer, theirs in sorted(bodies.items()) if (update := self._update(epoch, peer, theirs))]
        if len(updates) < self.plan.strategy.least:
            return state
        try:
            merged = self.plan.strategy.merge(updates, Merging(self.space, adapter, self.plan.seed, epoch))
        except (PayloadError, LinAlgError):
            return state
        moved, kept = self.plan.optimizer.step(adapter, merged, kept)
        moved = moved.clamp(-broadcast.LARGEST, broadcast.LARGEST)
        if not all(tensor.isfinite().all() for tensor in (moved, *kept.values())):
            return state
        return little(moved) + b"".join(little(kept[name]) for name in self._kept)

    def adapter(self, state: bytes) -> Float[Tensor, " d"]:
        """The adapter of a state."""
        return self._read(state)[0]

    def seal(self, delta: Float[Tensor, " d"], carried: Tensor, examples: int, ctx: Context) -> tuple[bytes, Tensor]:
        """A body, and what error feedback keeps of the delta: the residual.

        What is longer than a delta may be is shortened first, and the rest is lost.

        Args:
            delta: of the segment.
            carried: from earlier ones; zeros where the codec is without error feedback.
            examples: that it was trained on; counted up to the plan's largest weight.
            ctx: of its epoch and member.
        """
        codec = self.plan.update_codec
        parts, residual = self._encoded(delta, carried, ctx)
        norm = length(codec.decode(parts, self.space, ctx))
        if norm > self.plan.largest_norm:
            share = SHORTER * self.plan.largest_norm / norm
            parts, residual = self._encoded(share * delta, share * carried, ctx)
        payload = broadcast.pack(parts, codec, self.space, self._run, ctx)
        weight = int(min(examples, self.plan.largest_weight, (1 << 32) - 1))
        return weight.to_bytes(_WEIGHT, "little") + payload, residual

    def context(self, epoch: int, peer: int) -> Context:
        """What the codec draws from for a member's deltas of an epoch."""
        return Context(self.plan.seed, epoch, peer)

    def _encoded(self, delta: Float[Tensor, " d"], carried: Tensor, ctx: Context) -> tuple[Parts, Tensor]:
        codec = self.plan.codec
        if isinstance(codec, ErrorFeedback):
            return codec.encode(delta, carried, self.space, ctx)
        return codec.encode(delta, self.space, ctx), torch.zeros_like(carried)

    def _update(self, epoch: int, peer: int, bodies: Sequence[bytes]) -> Update | None:
        """What a member brings to the merge; None where it published what was made for another place."""
        codec, ctx = self.plan.update_codec, self.context(epoch, peer)
        opened = [(weight, payload) for weight, payload in map(_opened, bodies) if _is_of(payload, epoch, peer)]
        if not opened:
            return None
        sent: list[Tensor | TernaryDelta] = [
            broadcast.received(payload, codec, self.space, self._run, ctx) for _, payload in opened
        ]
        if len(sent) == 1:
            return Update(sent[0], float(opened[0][0]))
        total = reduce(torch.add, (one.dense() if isinstance(one, TernaryDelta) else one for one in sent))
        if (norm := length(total)) > self.plan.largest_norm:
            total = total * (self.plan.largest_norm / norm)
        return Update(total, float(opened[-1][0]))

    def _read(self, state: bytes) -> tuple[Float[Tensor, " d"], dict[str, Tensor]]:
        """Adapter and optimizer; before the first step there is no optimizer's state."""
        adapter = torch.from_numpy(np.frombuffer(state, "<f4", self.space.numel).astype(np.float32))
        kept, begin = {}, 4 * self.space.numel
        for name, (dtype, shape) in self._kept.items() if len(state) > begin else ():
            count = math.prod(shape)
            numbers = np.frombuffer(state, dtype.newbyteorder("<"), count, begin)
            kept[name] = torch.from_numpy(numbers.astype(dtype).reshape(shape))
            begin += numbers.nbytes
        return adapter, kept


def _check_equals(plan: Plan, space: Space, keeps: bool) -> None:
    """Pass where equals can do without a server what a plan asks for."""
    strategy, codec = plan.strategy, plan.update_codec
    plan.strategy.check_space(space)
    wanted = {
        f"{strategy} needs {', '.join(sorted(strategy.needs))} beside the deltas": strategy.needs,
        f"{codec} reads an adapter of the server's": codec.reads,
        "root: one whom all trust": plan.root or strategy.rooted,
        "buffer: a round without a barrier": plan.buffer,
        "cohort: somebody who draws it": plan.cohort,
        "supermask: scores, not weights": plan.settings.supermask,
    }
    for what, asked in wanted.items():
        if asked:
            raise ValueError(f"peers have no server, and the plan asks for one: {what}; leave it out")
    epochs = range(1, min(plan.rounds, ROUNDS_SEEN) + 1) if keeps else ()
    if any(codec.carried(space, Context(plan.seed, epoch)).numel < space.numel for epoch in epochs):
        raise ValueError(
            f"{codec} sends some slots in some epochs, and {plan.optimizer.expression} would move the others too; "
            "take SGD(lr=1.0)"
        )


def length(vector: Float[Tensor, " d"]) -> float:
    """The L2 norm, added up in one order, so that machines agree on which side of a limit it lies."""
    return math.sqrt(float(kernels.block_squares(vector.numpy(), np.array([0, vector.numel()]))[0]))


def _opened(body: bytes) -> tuple[int, memoryview]:
    return int.from_bytes(body[:_WEIGHT], "little"), memoryview(body)[_WEIGHT:]


def _is_of(payload: memoryview, epoch: int, peer: int) -> bool:
    said, _ = wire.inspect(payload)
    return (said.round, said.client) == (epoch, peer)


def little(tensor: Tensor) -> bytes:
    """The numbers of a tensor, little-endian."""
    numbers = tensor.detach().numpy()
    return numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
