"""The round loop: ask, check, write down, fold, step, commit."""

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from google.protobuf.message import DecodeError
from jaxtyping import Float
from torch import Tensor

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Context
from fedpeft.errors import (
    Defect,
    JournalError,
    PayloadError,
    QuorumError,
    Reason,
    RefusedError,
    RunError,
    SiteError,
    SpaceError,
)
from fedpeft.federation import broadcast
from fedpeft.federation.journal import Journal
from fedpeft.federation.plan import Plan
from fedpeft.federation.state import ServerState
from fedpeft.federation.transport import Arrival, NodeId, Transport
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space
from fedpeft.strategies import Fold, Update

Evaluate: TypeAlias = Callable[[Float[Tensor, " d"]], Mapping[str, float]]
Watch: TypeAlias = Callable[[NodeId, str], None]
Record: TypeAlias = dict[str, Any]


class Server:
    """Runs the rounds of a plan over a transport; a journal with records in it is resumed.

    Args:
        plan: the rules.
        space: of the adapter.
        start: the adapter to begin from, shape (d,).
        transport: reaches the clients.
        journal: of this run.
        evaluate: loss and accuracy of an adapter on held-out data.
        watch: told of every reply: the node, and "counted" or why not.

    Raises:
        JournalError: the journal is of a run in another space.
    """

    def __init__(
        self,
        plan: Plan,
        space: Space,
        start: Float[Tensor, " d"],
        transport: Transport,
        journal: Journal,
        evaluate: Evaluate | None = None,
        watch: Watch = lambda node, outcome: None,
    ) -> None:
        self._plan, self._space, self._transport, self._journal = plan, space, transport, journal
        self._evaluate, self._watch = evaluate, watch
        self._numbers: dict[NodeId, int] = {}
        for record in journal.records:
            self._numbers |= record.get("enrolled", {})
        self.state = self._resume() if journal.records else self._begin(start)

    def run(self) -> Iterator[Record]:
        """Do the rounds that are left; yields the metrics of each once it is committed.

        Raises:
            QuorumError: too few updates were counted; the round can be taken up again.
            SiteError: so, because a site failed.
        """
        while self.state.round < self._plan.rounds:
            yield self._round(self.state.round + 1)

    def history(self) -> list[Record]:
        """The metrics of all committed rounds."""
        return [record["metrics"] for record in self._journal.records if record["kind"] == "COMMIT"]

    def before(self) -> Mapping[str, float]:
        """What `evaluate` said of the start."""
        scores: Mapping[str, float] = self._journal.records[0]["before"]
        return scores

    def _begin(self, start: Float[Tensor, " d"]) -> ServerState:
        state = ServerState(secrets.token_bytes(16), 0, start, torch.zeros_like(start))
        self._journal.append(
            "BEGIN",
            run=state.run.hex(),
            space=self._journal.put(self._space.to_json().encode()),
            state=self._journal.put(state.to_bytes()),
            before=self._scores(start),
        )
        return state

    def _resume(self) -> ServerState:
        records = self._journal.records
        try:
            Space.from_json(self._journal.get(records[0]["space"]).decode()).check(self._space)
        except SpaceError as error:
            raise JournalError(f"{self._journal.folder} is of another run: {error}") from None
        last = next(r for r in reversed(records) if r["kind"] in ("BEGIN", "COMMIT"))
        return ServerState.from_bytes(self._journal.get(last["state"]))

    def _round(self, number: int) -> Record:
        began = time.perf_counter()
        public, cohort = self._open(number)
        whole = broadcast.whole(public, self._space, self.state.run, number)
        if not self._journal.of("CLOSE", number):
            self._collect(number, cohort, whole)
            self._journal.append("CLOSE", round=number)
        closed = time.perf_counter()
        accepted = sorted(self._journal.of("ACCEPT", number), key=lambda record: str(record["node"]))
        vector, optimizer = self._plan.optimizer.step(self.state.vector, self._fold(accepted), self.state.optimizer)
        if not (vector.abs() <= broadcast.LARGEST).all():
            raise RunError(f"round {number}: the adapter went beyond the range of fp16; lower the learning rates")
        counted = self.state.counted | {record["node"]: number for record in accepted}
        state = replace(self.state, round=number, vector=vector, public=public, optimizer=optimizer, counted=counted)
        folded = time.perf_counter()
        scores = self._scores(vector)
        ended = time.perf_counter()
        seconds = {"fold_s": folded - closed, "evaluate_s": ended - folded, "round_s": ended - began}
        return self._commit(state, accepted, scores, seconds)

    def _open(self, number: int) -> tuple[Float[Tensor, " d"], Sequence[NodeId]]:
        """The public adapter of the round, and who is asked."""
        ctx = Context(self._plan.seed, number)
        if number == 1:
            public, step = broadcast.advance(self.state.vector, torch.zeros(())), b""
        else:
            codec, missing = self._plan.broadcast, self.state.vector - self.state.public
            parts = codec.encode(missing, self._space, ctx)
            public = broadcast.advance(self.state.public, codec.decode(parts, self._space, ctx))
            step = broadcast.pack(parts, codec, self._space, self.state.run, ctx)
        if not self._journal.of("OPEN", number):
            nodes = sorted(self._transport.nodes())
            if not nodes:
                raise QuorumError(f"round {number}: there is no client to ask")
            new = sorted(set(nodes) - self._numbers.keys())
            first = len(self._numbers) + 1
            order = Stream(self._plan.seed, Purpose.COHORT, number).permutation(len(nodes))
            self._journal.append(
                "OPEN",
                round=number,
                cohort=sorted(nodes[i] for i in order[: self._plan.cohort or None]),
                enrolled={node: first + i for i, node in enumerate(new)},
                step=self._journal.put(step),
                step_bytes=len(step),
            )
        opened = self._journal.of("OPEN", number)[0]
        self._numbers |= opened["enrolled"]
        cohort: Sequence[NodeId] = opened["cohort"]
        return public, cohort

    def _collect(self, number: int, cohort: Sequence[NodeId], whole: bytes) -> None:
        """Ask who has not answered yet; a site that lost the adapter is asked again with the whole of it."""
        until = time.monotonic() + self._plan.deadline_s
        done = {record["node"] for record in self._journal.of("ACCEPT", number)}
        asked = [node for node in cohort if node not in done]
        failures: dict[NodeId, str] = {}
        held = self.state.counted
        while asked:
            requests = {node: self._task(number, node, held.get(node, 0), whole) for node in asked}
            stale = set()
            for arrival in self._transport.exchange(requests, max(0.0, until - time.monotonic())):
                sent = requests.get(arrival.node, b"")
                outcome = "counted"
                try:
                    self._receive(number, arrival, len(sent), failures)
                except RefusedError as error:
                    outcome = str(error)
                    self._journal.append(
                        "REFUSE", round=number, node=arrival.node, why=outcome, **_traffic(arrival, len(sent))
                    )
                    if error.reason is Reason.STALE_ADAPTER and held.get(arrival.node):
                        stale.add(arrival.node)
                self._watch(arrival.node, outcome)
            held = {node: round_ for node, round_ in held.items() if node not in stale}
            asked = sorted(stale)
        counted, need = len(self._journal.of("ACCEPT", number)), self._plan.needed(len(cohort))
        if counted < need:
            if failures:
                raise SiteError(*next(iter(sorted(failures.items()))))
            refused = [f"{r['node']}: {r['why']}" for r in self._journal.of("REFUSE", number)]
            reasons = "; ".join(refused) or f"nobody else answered within {self._plan.deadline_s:g} s"
            raise QuorumError(
                f"round {number}: {counted} of {len(cohort)} clients were counted, {need} needed: {reasons}"
            )

    def _task(self, number: int, node: NodeId, held: int, whole: bytes) -> bytes:
        settings = self._plan.settings
        task = pb.Task(
            run=self.state.run,
            round=number,
            client=self._numbers[node],
            seed=self._plan.seed,
            codec=repr(self._plan.codec),
            counted=self.state.counted.get(node, 0),
            settings=pb.Settings(
                local_steps=settings.local_steps,
                batch_size=settings.batch_size,
                learning_rate=self._plan.learning_rate(number),
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
                labels=settings.labels,
            ),
        )
        steps = [r for r in self._steps() if held < r["round"] <= number]
        if held and len(steps) == number - held and sum(r["step_bytes"] for r in steps) < len(whole):
            for record in steps:
                task.broadcasts.add(
                    from_round=record["round"] - 1,
                    to_round=record["round"],
                    codec=repr(self._plan.broadcast),
                    payload=self._journal.get(record["step"]),
                )
        else:
            task.space = self._space.to_json()
            task.broadcasts.add(to_round=number, codec=repr(broadcast.WHOLE), payload=whole)
        return task.SerializeToString(deterministic=True)

    def _steps(self) -> list[Record]:
        """The steps whose payloads are kept: the last, and as many before it as are together smaller than the whole."""
        kept: list[Record] = []
        room = broadcast.WHOLE_BYTES * self._space.numel
        for number in range(self.state.round + 1, 1, -1):
            for record in self._journal.of("OPEN", number):
                room -= record["step_bytes"]
                if kept and room < 0:
                    return kept[::-1]
                kept.append(record)
        return kept[::-1]

    def _receive(self, number: int, arrival: Arrival, down_bytes: int, failures: dict[NodeId, str]) -> None:
        """Count one reply, or say why not; nothing is kept of a reply that is refused.

        Raises:
            RefusedError: the reply is not what was asked for.
        """
        reply = pb.Reply()
        try:
            reply.ParseFromString(arrival.data)
        except DecodeError as error:
            raise RefusedError(Reason.BAD_PAYLOAD, f"the reply is not readable: {error}") from None
        if not down_bytes:
            raise RefusedError(Reason.NOT_ASKED, f"node {arrival.node!r} is not in the cohort of round {number}")
        if any(record["node"] == arrival.node for record in self._journal.of("ACCEPT", number)):
            raise RefusedError(Reason.DUPLICATE, f"node {arrival.node!r} was counted in round {number} already")
        if reply.run != self.state.run:
            raise RefusedError(Reason.OTHER_RUN, f"expected run {self.state.run.hex()}, got {reply.run.hex()[:32]}")
        if reply.round != number:
            raise RefusedError(Reason.OTHER_ROUND, f"expected round {number}, got {reply.round}")
        match reply.WhichOneof("result"):
            case "update":
                self._check(number, arrival.node, reply.update)
            case "refusal":
                reasons = [reason for reason in Reason if reason.value == reply.refusal.reason]
                raise RefusedError(reasons[0] if reasons else Reason.POLICY, reply.refusal.detail[:2000])
            case "failure":
                failures[arrival.node] = reply.failure.trace[:100_000]
                raise RefusedError(Reason.FAILED, reply.failure.error[:2000])
            case _:
                raise RefusedError(Reason.BAD_PAYLOAD, "the reply holds no result")
        self._journal.append(
            "ACCEPT",
            round=number,
            node=arrival.node,
            payload=self._journal.put(reply.update.payload),
            weight=reply.update.weight,
            metrics={name: value for name, value in sorted(reply.update.metrics.items()) if math.isfinite(value)},
            **_traffic(arrival, down_bytes),
        )

    def _check(self, number: int, node: NodeId, update: pb.Update) -> None:
        if not 0 < update.weight <= self._plan.largest_weight:
            raise RefusedError(
                Reason.BAD_PAYLOAD,
                f"{Defect.WEIGHT.value}: expected a weight in (0, {self._plan.largest_weight:g}], got {update.weight}",
            )
        try:
            delta = self._decode(number, node, update.payload)
        except PayloadError as error:
            raise RefusedError(Reason.BAD_PAYLOAD, str(error)) from None
        norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        if not norm <= self._plan.largest_norm:
            raise RefusedError(
                Reason.BAD_PAYLOAD,
                f"{Defect.NORM.value}: expected an L2 norm of at most {self._plan.largest_norm:g}, got {norm:g}",
            )

    def _decode(self, number: int, node: NodeId, payload: bytes) -> Float[Tensor, " d"]:
        ctx = Context(self._plan.seed, number, self._numbers[node])
        return broadcast.unpack(payload, self._plan.update_codec, self._space, self.state.run, ctx)

    def _fold(self, accepted: Sequence[Record]) -> Float[Tensor, " d"]:
        """One update in memory at a time, in node order, so that the sum has the same bits however replies came."""
        fold = Fold(self._plan.strategy, self._space)
        for record in accepted:
            delta = self._decode(record["round"], record["node"], self._journal.get(record["payload"]))
            fold.accumulate(Update(delta, record["weight"]))
        return fold.finalize()

    def _commit(
        self,
        state: ServerState,
        accepted: Sequence[Record],
        scores: Mapping[str, float],
        seconds: Mapping[str, float],
    ) -> Record:
        traffic = self._journal.of("ACCEPT", state.round) + self._journal.of("REFUSE", state.round)
        weights = sum(record["weight"] for record in accepted)
        dense = 4 * self._space.numel
        metrics = {
            "round": state.round,
            "loss": scores.get("loss"),
            "accuracy": scores.get("accuracy"),
            "train_loss": sum(r["weight"] * r["metrics"].get("loss", 0.0) for r in accepted) / weights,
            "learning_rate": self._plan.learning_rate(state.round),
            "up_bytes": sum(r["up_bytes"] for r in traffic),
            "down_bytes": sum(r["down_bytes"] for r in traffic),
            "up_bytes_fp32": dense * len(accepted),
            "down_bytes_fp32": dense * len(accepted),
            "counted": len(accepted),
            "refused": len(traffic) - len(accepted),
            "train_s": sum(r["metrics"].get("train_s", 0.0) for r in accepted),
            "encode_s": sum(r["metrics"].get("encode_s", 0.0) for r in accepted),
            **seconds,
            "sites": {
                r["node"]: {"up_bytes": r["up_bytes"], "down_bytes": r["down_bytes"], "weight": r["weight"]}
                for r in accepted
            },
        }
        last = next(r for r in reversed(self._journal.records) if r["kind"] in ("BEGIN", "COMMIT"))
        digest = self._journal.put(state.to_bytes())
        self._journal.append("COMMIT", round=state.round, state=digest, metrics=metrics)
        self.state = state
        steps = {record["step"] for record in self._steps()}
        self._journal.keep_only(steps | {digest, last["state"], self._journal.records[0]["space"]})
        return metrics

    def _scores(self, vector: Float[Tensor, " d"]) -> dict[str, float]:
        return dict(self._evaluate(vector)) if self._evaluate else {}


def _traffic(arrival: Arrival, down_bytes: int) -> dict[str, int]:
    return {"up_bytes": len(arrival.data), "down_bytes": down_bytes}
