"""What comes back from nodes: everything is checked to the last bit before it counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Choice, Context, Parts, Sketch
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.federation import broadcast, messages, statistics
from fedpeft.federation.plan import Plan
from fedpeft.federation.transport import Arrival, NodeId
from fedpeft.space import Space
from fedpeft.ternary import TernaryDelta


@dataclass(frozen=True)
class Checked:
    """An update that may be counted.

    Args:
        payload: a view of the reply.
        statistics: the payload of each one that the strategy needs, by name; views of the reply.
        weight: of the client.
        metrics: as the client says; neither known nor finite for sure.
        chosen: what its codec chose, where it chooses: how many slots of which role were given what.
    """

    payload: memoryview
    statistics: Mapping[str, memoryview]
    weight: float
    metrics: Mapping[str, float]
    chosen: str = ""


_LONGEST_TRACE, _LONGEST_CHOSEN = 8000, 1000
_LIGHTEST = 1e-6  # weight; of less, sums of squares vanish


class FailedError(RefusedError):
    """A reply that says that the site failed, with the site's own traceback if it gives one."""

    def __init__(self, error: str, trace: str) -> None:
        super().__init__(Reason.FAILED, error)
        self.trace = trace


class Replies:
    """Checks the replies of a run.

    Args:
        plan: the rules.
        space: of the adapter.
        run: its name.
        clients: the nodes' numbers in the run.
        public: the round's public adapter.
        before: the one of the round before; None in the first.
    """

    def __init__(
        self,
        plan: Plan,
        space: Space,
        run: bytes,
        clients: Mapping[NodeId, int],
        public: Float[Tensor, " d"],
        before: Float[Tensor, " d"] | None,
    ) -> None:
        self._plan, self._space, self._run, self._clients = plan, space, run, clients
        self._public, self._before = public, before
        self._largest = largest_reply(plan, space)

    def check(self, arrival: Arrival, number: int) -> Checked:
        """The update in a reply to the task of a round.

        Raises:
            RefusedError: it may not be counted.
        """
        if len(arrival.data) > self._largest:
            raise RefusedError(
                Reason.BAD_PAYLOAD,
                f"{Defect.TOO_LARGE.value}: a reply has at most {self._largest} bytes, got {len(arrival.data)}",
            )
        reply, payloads = messages.split(arrival.data)
        if reply.run != self._run:
            raise RefusedError(Reason.OTHER_RUN, f"expected run {self._run.hex()}, got {reply.run.hex()[:32]}")
        if reply.round < number:
            raise RefusedError(Reason.LATE, f"round {reply.round} is closed, this is round {number}")
        if reply.round != number:
            raise RefusedError(Reason.OTHER_ROUND, f"expected round {number}, got {reply.round}")
        match reply.WhichOneof("result"):
            case "update":
                payload, beside = messages.cut(reply.update, payloads)
                chosen = self._check_update(arrival.node, reply.update, payload, number)
                measured = self._check_statistics(arrival.node, beside, number)
                return Checked(payload, measured, reply.update.weight, reply.update.metrics, chosen)
            case "refusal":
                reasons = [reason for reason in Reason if reason.value == reply.refusal.reason]
                raise RefusedError(reasons[0] if reasons else Reason.POLICY, reply.refusal.detail[:2000])
            case "failure":
                raise FailedError(reply.failure.error[:2000], reply.failure.trace[-_LONGEST_TRACE:])
        raise RefusedError(Reason.BAD_PAYLOAD, "the reply holds no result")

    def read(self, node: NodeId, payload: bytes | memoryview, number: int) -> Float[Tensor, " d"] | TernaryDelta:
        """The delta in a node's update to the task of a round, as bit planes where it is ternary.

        Raises:
            PayloadError: the bytes are not such an update.
        """
        return broadcast.received(payload, self._plan.update_codec, self._space, self._run, self._context(node, number))

    def sketch(self, node: NodeId, number: int) -> Sketch | None:
        """How a node's update to the task of a round is decoded in two steps, where its codec does that."""
        return self._plan.update_codec.sketch(self._space, self._context(node, number))

    def parts(self, node: NodeId, payload: bytes | memoryview, number: int) -> Parts:
        """The parts of a node's update to the task of a round.

        Raises:
            PayloadError: the bytes are not such an update.
        """
        return broadcast.parts(payload, self._plan.update_codec, self._space, self._run, self._context(node, number))

    def read_statistic(self, name: str, node: NodeId, payload: bytes | memoryview, number: int) -> Float[Tensor, " s"]:
        """A statistic that came with a node's update to the task of a round.

        Raises:
            PayloadError: the bytes are not such a statistic.
        """
        return statistics.unpack(name, payload, self._space, self._run, self._context(node, number))

    def _context(self, node: NodeId, number: int) -> Context:
        codec, client = self._plan.update_codec, self._clients[node]
        return broadcast.context(codec, self._plan.seed, number, client, self._public, self._before)

    def _check_update(self, node: NodeId, update: pb.Update, payload: memoryview, number: int) -> str:
        heaviest = self._plan.largest_weight
        codec, ctx = self._plan.update_codec, self._context(node, number)
        try:
            if not _LIGHTEST <= update.weight <= heaviest:
                raise PayloadError(
                    Defect.WEIGHT, f"expected a weight in [{_LIGHTEST:g}, {heaviest:g}], got {update.weight}"
                )
            parts = broadcast.parts(payload, codec, self._space, self._run, ctx)
            self._check_delta(parts, ctx)
        except PayloadError as error:
            raise RefusedError(Reason.BAD_PAYLOAD, str(error)) from None
        return _summed_up(codec.chosen(parts, self._space, ctx), self._space)[:_LONGEST_CHOSEN]

    def _check_delta(self, parts: Parts, ctx: Context) -> None:
        """A delta is not written out where its sketch tells that it is short enough."""
        codec, longest = self._plan.update_codec, self._plan.largest_norm
        sketch = codec.sketch(self._space, ctx)
        if sketch and sketch.longest(sketch.values(parts)) <= longest:
            return
        delta = broadcast.decoded(parts, codec, self._space, ctx)
        norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        if not norm <= longest:
            raise PayloadError(Defect.NORM, f"expected an L2 norm of at most {longest:g}, got {norm:g}")

    def _check_statistics(self, node: NodeId, payloads: Sequence[memoryview], number: int) -> dict[str, memoryview]:
        names = sorted(self._plan.strategy.asks(number))
        try:
            if len(payloads) != len(names):
                raise PayloadError(
                    Defect.STATISTIC, f"expected {', '.join(names) or 'none'}, got {len(payloads)} beside the update"
                )
            for name, payload in zip(names, payloads, strict=True):
                self.read_statistic(name, node, payload, number)
        except PayloadError as error:
            raise RefusedError(Reason.BAD_PAYLOAD, str(error)) from None
        return dict(zip(names, payloads, strict=True))


def largest_reply(plan: Plan, space: Space) -> int:
    """The most bytes that a reply can have."""
    beside = statistics.largest(plan.strategy.needs, space)
    return messages.LARGEST_HEAD + 4 + broadcast.largest(plan.update_codec, space) + beside


def _summed_up(chosen: Mapping[str, Choice], space: Space) -> str:
    """How many slots of which role were given what, and which share of their coordinates is kept."""
    numel, kept, slots = Counter[str](), Counter[str](), Counter[str]()
    for slot in space.slots:
        if found := chosen.get(slot.name):
            what = f"{slot.role} {found.kind}"
            slots[what] += 1
            numel[what] += slot.numel
            kept[what] += round(found.density * slot.numel)
    return ", ".join(f"{count} {what} {kept[what] / max(1, numel[what]):.2%}" for what, count in sorted(slots.items()))
