"""One round of a server: who is asked, what they are sent, what of their replies is counted, and its sum."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from google.protobuf.message import DecodeError
from jaxtyping import Float
from torch import Tensor

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Context
from fedpeft.errors import Defect, PayloadError, QuorumError, Reason, RefusedError, SiteError
from fedpeft.federation import broadcast
from fedpeft.federation.events import Event, Happening, Watch
from fedpeft.federation.journal import Journal
from fedpeft.federation.plan import Plan
from fedpeft.federation.state import ServerState
from fedpeft.federation.transport import Arrival, NodeId, Transport
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space
from fedpeft.strategies import Fold, Update

_FINAL = (Reason.BAD_PAYLOAD, Reason.FAILED, Reason.POLICY, Reason.OTHER_SPACE, Reason.OTHER_RUN, Reason.OTHER_ROUND)
_METRICS = ("loss", "train_s", "encode_s")
_REPLY_FRAMING = 1 << 16  # metrics, or a failure's traceback

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all rounds of a run have in common.

    Args:
        plan: the rules.
        space: of the adapter.
        transport: reaches the clients.
        journal: of the run.
        watch: told of what happens.
    """

    plan: Plan
    space: Space
    transport: Transport
    journal: Journal
    watch: Watch


class Round:
    """A round from its opening to the merged delta; what the journal already holds of it is not done again.

    Args:
        setting: of the run.
        state: the server after the round before.

    Raises:
        QuorumError: there is no client to ask.
    """

    def __init__(self, setting: Setting, state: ServerState) -> None:
        self._plan, self._space, self._journal = setting.plan, setting.space, setting.journal
        self._setting, self._state = setting, state
        self.number = state.round + 1
        self.public, step = self._publish()
        if not self._journal.of("OPEN", self.number):
            self._open(step)
        self._cohort: Sequence[NodeId] = self._journal.of("OPEN", self.number)[0]["cohort"]
        self._numbers = _numbers(self._journal, self.number)
        self._largest_reply = _REPLY_FRAMING + broadcast.largest(self._plan.update_codec, self._space)
        self._whole = broadcast.whole(self.public, self._space, state.run, self.number)

    @property
    def accepted(self) -> list[Record]:
        """The updates that are counted, in node order."""
        return sorted(self._journal.of("ACCEPT", self.number), key=lambda record: str(record["node"]))

    @property
    def spoilt(self) -> set[NodeId]:
        """The nodes whose update was refused for what was in it."""
        return {r["node"] for r in self._refused() if r["why"].startswith(Reason.BAD_PAYLOAD)}

    def collect(self) -> None:
        """Ask who has not answered yet, and close; a site that lost the adapter is asked again with the whole of it.

        Raises:
            QuorumError: too few updates were counted; the round can be taken up again.
            SiteError: so, because a site failed.
        """
        if self._journal.of("CLOSE", self.number):
            return
        until = time.monotonic() + self._plan.deadline_s
        refused = self._refused()
        done = {record["node"] for record in self.accepted} | {r["node"] for r in refused if r["final"]}
        lost = {record["node"] for record in refused if record["why"].startswith(Reason.STALE_ADAPTER)}
        asked = [node for node in self._cohort if node not in done]
        while asked:
            requests = {
                node: self._task(node, 0 if node in lost else self._state.counted.get(node, 0)) for node in asked
            }
            self._journal.append("ASK", round=self.number, bytes={node: len(data) for node, data in requests.items()})
            for node, data in requests.items():
                self._tell(Happening.ASKED, node, down_bytes=len(data))
            stale = set()
            for arrival in self._setting.transport.exchange(requests, max(0.0, until - time.monotonic())):
                error = self._receive(arrival, late=time.monotonic() > until)
                if error and error.reason is Reason.STALE_ADAPTER and arrival.node not in lost:
                    stale.add(arrival.node)
            lost |= stale
            asked = sorted(stale)
        self._check_quorum()
        self._journal.append("CLOSE", round=self.number)

    def merged(self) -> Float[Tensor, " d"]:
        """One update in memory at a time, in node order, so that the sum has the same bits however replies came."""
        fold = Fold(self._plan.strategy, self._space)
        for record in self.accepted:
            delta = self._decode(record["node"], self._journal.get(record["payload"]))
            fold.accumulate(Update(delta, record["weight"]))
        return fold.finalize()

    def _publish(self) -> tuple[Float[Tensor, " d"], bytes]:
        """The public adapter of the round, and the step that leads to it (none leads to the first)."""
        if self.number == 1:
            return broadcast.advance(self._state.vector, torch.zeros(())), b""
        run, codec, ctx = self._state.run, self._plan.broadcast, Context(self._plan.seed, self.number)
        if opened := self._journal.of("OPEN", self.number):
            step = self._journal.get(opened[0]["step"])
        else:
            missing = (self._state.vector - self._state.public).clamp(-broadcast.LARGEST, broadcast.LARGEST)
            step = broadcast.pack(codec.encode(missing, self._space, ctx), codec, self._space, run, ctx)
        return broadcast.advance(self._state.public, broadcast.unpack(step, codec, self._space, run, ctx)), step

    def _open(self, step: bytes) -> None:
        nodes = sorted(self._setting.transport.nodes())
        if not nodes:
            raise QuorumError(f"round {self.number}: there is no client to ask")
        known = _numbers(self._journal, self.number)
        new = sorted(set(nodes) - known.keys())
        order = Stream(self._plan.seed, Purpose.COHORT, self.number).permutation(len(nodes))
        self._journal.append(
            "OPEN",
            round=self.number,
            cohort=sorted(nodes[i] for i in order[: self._plan.cohort or None]),
            enrolled={node: len(known) + i for i, node in enumerate(new, 1)},
            step=self._journal.put(step),
            step_bytes=len(step),
        )
        self._tell(Happening.OPENED, cohort=self._plan.cohort or len(nodes))

    def _task(self, node: NodeId, held: int) -> bytes:
        """What a node is sent that holds the public adapter of round `held` (0: none)."""
        settings = self._plan.settings
        task = pb.Task(
            run=self._state.run,
            round=self.number,
            client=self._numbers[node],
            seed=self._plan.seed,
            codec=repr(self._plan.codec),
            counted=self._state.counted.get(node, 0),
            refused=self._state.refused.get(node, 0),
            settings=pb.Settings(
                local_steps=settings.local_steps,
                batch_size=settings.batch_size,
                learning_rate=self._plan.learning_rate(self.number),
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
                labels=settings.labels,
            ),
        )
        steps = [record for record in kept_steps(self._journal, self.number, self._space) if record["round"] > held]
        if held and len(steps) == self.number - held and sum(r["step_bytes"] for r in steps) < len(self._whole):
            for record in steps:
                task.broadcasts.add(
                    from_round=record["round"] - 1,
                    to_round=record["round"],
                    codec=repr(self._plan.broadcast),
                    payload=self._journal.get(record["step"]),
                )
        else:
            task.space = self._space.to_json()
            task.broadcasts.add(to_round=self.number, codec=repr(broadcast.WHOLE), payload=self._whole)
        return task.SerializeToString(deterministic=True)

    def _receive(self, arrival: Arrival, late: bool) -> RefusedError | None:
        """Count a reply, or write down why not; of an update that is refused nothing else is kept."""
        facts: Record = {"round": self.number, "node": arrival.node, "up_bytes": len(arrival.data)}
        try:
            if late:
                raise RefusedError(Reason.LATE, f"round {self.number} waits {self._plan.deadline_s:g} s for replies")
            update = self._update(arrival)
        except RefusedError as error:
            # Who is done with is not asked again when the round is taken up; the others' own reply may still come.
            final = error.reason in _FINAL or late
            trace = error.trace if isinstance(error, _FailedError) else ""
            attempt = len(self._journal.of("FAIL", self.number))
            self._journal.append("REFUSE", why=str(error), final=final, attempt=attempt, trace=trace, **facts)
            self._tell(Happening.REFUSED, arrival.node, up_bytes=len(arrival.data), why=str(error))
            return error
        metrics = {name: update.metrics[name] for name in _METRICS if abs(update.metrics.get(name, math.inf)) < 1e9}
        payload = self._journal.put(update.payload)
        self._journal.append("ACCEPT", payload=payload, weight=update.weight, metrics=metrics, **facts)
        self._tell(Happening.COUNTED, arrival.node, up_bytes=len(arrival.data), weight=update.weight, **metrics)
        return None

    def _tell(self, kind: Happening, node: NodeId = "", /, **facts: object) -> None:
        self._setting.watch(Event(kind, node, self.number, facts))

    def _update(self, arrival: Arrival) -> pb.Update:
        """The update in a reply, checked to the last bit."""
        if len(arrival.data) > self._largest_reply:
            raise RefusedError(
                Reason.BAD_PAYLOAD,
                f"{Defect.TOO_LARGE.value}: a reply has at most {self._largest_reply} bytes, got {len(arrival.data)}",
            )
        reply = pb.Reply()
        try:
            reply.ParseFromString(arrival.data)
        except DecodeError as error:
            raise RefusedError(Reason.BAD_PAYLOAD, f"the reply is not readable: {error}") from None
        if arrival.node not in self._cohort:
            raise RefusedError(Reason.NOT_ASKED, f"node {arrival.node!r} is not in the cohort of round {self.number}")
        if any(record["node"] == arrival.node for record in self._journal.of("ACCEPT", self.number)):
            raise RefusedError(Reason.DUPLICATE, f"node {arrival.node!r} was counted in round {self.number} already")
        if reply.run != self._state.run:
            raise RefusedError(Reason.OTHER_RUN, f"expected run {self._state.run.hex()}, got {reply.run.hex()[:32]}")
        if reply.round < self.number:
            raise RefusedError(Reason.LATE, f"round {reply.round} is closed, this is round {self.number}")
        if reply.round != self.number:
            raise RefusedError(Reason.OTHER_ROUND, f"expected round {self.number}, got {reply.round}")
        match reply.WhichOneof("result"):
            case "update":
                self._check(arrival.node, reply.update)
                return reply.update
            case "refusal":
                reasons = [reason for reason in Reason if reason.value == reply.refusal.reason]
                raise RefusedError(reasons[0] if reasons else Reason.POLICY, reply.refusal.detail[:2000])
            case "failure":
                raise _FailedError(reply.failure.error[:2000], reply.failure.trace)
        raise RefusedError(Reason.BAD_PAYLOAD, "the reply holds no result")

    def _check(self, node: NodeId, update: pb.Update) -> None:
        heaviest, longest = self._plan.largest_weight, self._plan.largest_norm
        try:
            if not 0 < update.weight <= heaviest:
                raise PayloadError(Defect.WEIGHT, f"expected a weight in (0, {heaviest:g}], got {update.weight}")
            delta = self._decode(node, update.payload)
            norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
            if not norm <= longest:
                raise PayloadError(Defect.NORM, f"expected an L2 norm of at most {longest:g}, got {norm:g}")
        except PayloadError as error:
            raise RefusedError(Reason.BAD_PAYLOAD, str(error)) from None

    def _decode(self, node: NodeId, payload: bytes) -> Float[Tensor, " d"]:
        ctx = Context(self._plan.seed, self.number, self._numbers[node])
        return broadcast.unpack(payload, self._plan.update_codec, self._space, self._state.run, ctx)

    def _refused(self) -> list[Record]:
        """The refusals of this attempt: one that ends below quorum makes all of them void."""
        attempt = len(self._journal.of("FAIL", self.number))
        return [record for record in self._journal.of("REFUSE", self.number) if record["attempt"] == attempt]

    def _check_quorum(self) -> None:
        counted, asked = len(self.accepted), len(self._cohort)
        need = self._plan.needed(asked)
        if counted >= need:
            return
        refused = self._refused()
        self._journal.append("FAIL", round=self.number)
        for record in refused:
            if record["trace"]:
                raise SiteError(record["node"], record["trace"])
        reasons = "; ".join(f"{record['node']}: {record['why']}" for record in refused)
        reasons = reasons or f"nobody else answered within {self._plan.deadline_s:g} s"
        raise QuorumError(f"round {self.number}: {counted} of {asked} clients were counted, {need} needed: {reasons}")


class _FailedError(RefusedError):
    """A reply that says that the site failed, with the site's own traceback."""

    def __init__(self, error: str, trace: str) -> None:
        super().__init__(Reason.FAILED, error)
        self.trace = trace


def kept_steps(journal: Journal, number: int, space: Space) -> list[Record]:
    """The steps up to a round whose payloads are kept: as many of the last as are together smaller than the whole."""
    kept: list[Record] = []
    room = broadcast.WHOLE_BYTES * space.numel
    for record in (record for n in range(number, 1, -1) for record in journal.of("OPEN", n)):
        room -= record["step_bytes"]
        if kept and room < 0:
            break
        kept.append(record)
    return kept[::-1]


def _numbers(journal: Journal, number: int) -> dict[NodeId, int]:
    """The clients' numbers, as they were enrolled up to a round."""
    opened = (record for n in range(1, number + 1) for record in journal.of("OPEN", n))
    return {node: client for record in opened for node, client in record["enrolled"].items()}
