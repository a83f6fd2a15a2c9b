"""What nodes are sent in a round: the steps to its public adapter, and how to train from it."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Context
from fedpeft.errors import Reason
from fedpeft.federation import broadcast
from fedpeft.federation.journal import Journal, Record
from fedpeft.federation.plan import Plan
from fedpeft.federation.settings import of_round
from fedpeft.federation.state import ServerState
from fedpeft.federation.transport import Common, NodeId, Parcel
from fedpeft.space import Space


def publish(
    plan: Plan, space: Space, journal: Journal, state: ServerState, number: int
) -> tuple[Float[Tensor, " d"], bytes]:
    """The public adapter of a round, and the step that leads to it (none leads to the first)."""
    if number == 1:
        return broadcast.advance(state.vector, torch.zeros(())), b""
    run, codec = state.run, plan.broadcast
    ctx = Context(plan.seed, number, start=state.public if codec.reads else None)
    if opened := journal.of("OPEN", number):
        step = journal.get(opened[0]["step"])
    else:
        missing = (state.vector - state.public).clamp(-broadcast.LARGEST, broadcast.LARGEST)
        step = broadcast.pack(codec.encode(missing, space, ctx), codec, space, run, ctx)
    return broadcast.advance(state.public, broadcast.unpack(step, codec, space, run, ctx)), step


class Tasks:
    """Makes the tasks of one round; the same node gets the same bytes.

    Args:
        plan: the rules.
        space: of the adapter.
        journal: holds the steps.
        state: the server after the round before.
        number: of the round.
        public: its public adapter.
        clients: the nodes' numbers in the run.
        merged: the fewest updates that the round merges.
    """

    def __init__(
        self,
        plan: Plan,
        space: Space,
        journal: Journal,
        state: ServerState,
        number: int,
        public: Float[Tensor, " d"],
        clients: Mapping[NodeId, int],
        merged: int,
    ) -> None:
        self._plan, self._space, self._journal, self._state = plan, space, journal, state
        self._number, self._clients, self._merged = number, clients, merged
        self._steps = kept_steps(journal, number, space)
        self._public = public
        self._common: dict[int, Common] = {}

    def task(self, node: NodeId, lost: bool = False) -> Parcel:
        """What a node is sent; nodes that hold the same adapter are sent the same steps.

        Args:
            node: to whom.
            lost: it no longer has the adapter that it was sent before.
        """
        head = self._head(node)
        held = 0 if lost else head.counted
        if held not in self._common:
            self._common[held] = Common(self._way_from(held).SerializeToString(deterministic=True))
        # Messages one after another are one message with the fields of both.
        return Parcel(self._common[held], head.SerializeToString(deterministic=True))

    def _way_from(self, held: int) -> pb.Task:
        task = pb.Task()
        steps = [record for record in self._steps if record["round"] > held]
        all_kept = len(steps) == self._number - held
        if held and all_kept and sum(r["step_bytes"] for r in steps) < broadcast.WHOLE_BYTES * self._space.numel:
            for record in steps:
                self._add_step(task, record)
        else:
            task.space = self._space.to_json()
            if self._number > 1 and "before" in self._plan.update_codec.reads:
                self._add_whole(task, self._state.public, self._number - 1)
            last = self._steps[-1:] if task.broadcasts else []
            if last and last[0]["step_bytes"] < broadcast.WHOLE_BYTES * self._space.numel:
                self._add_step(task, last[0])
            else:
                self._add_whole(task, self._public, self._number)
        return task

    def _add_step(self, task: pb.Task, record: Record) -> None:
        task.broadcasts.add(
            from_round=record["round"] - 1,
            to_round=record["round"],
            codec=repr(self._plan.broadcast),
            payload=self._journal.get(record["step"]),
        )

    def _add_whole(self, task: pb.Task, public: Float[Tensor, " d"], number: int) -> None:
        whole = broadcast.whole(public, self._space, self._state.run, number)
        task.broadcasts.add(to_round=number, codec=repr(broadcast.WHOLE), payload=whole)

    def _head(self, node: NodeId) -> pb.Task:
        return pb.Task(
            run=self._state.run,
            round=self._number,
            client=self._clients[node],
            seed=self._plan.seed,
            codec=repr(self._plan.codec),
            counted=max(self._state.counted.get(node, 0), *self._answered(node, "ACCEPT")),
            refused=max(self._state.refused.get(node, 0), *self._answered(node, "REFUSE", Reason.BAD_PAYLOAD)),
            strategy=repr(self._plan.strategy),
            merged=self._merged,
            statistics=sorted(self._plan.strategy.asks(self._number)),
            settings=of_round(self._plan, self._number),
        )

    def _answered(self, node: NodeId, kind: str, why: str = "") -> list[int]:
        """Earlier rounds whose tasks a node answered in this one, as it does in a buffered run; 0 where it did not."""
        records = (r for r in self._journal.of(kind, self._number) if r["node"] == node)
        return [0, *(r["base"] for r in records if r["base"] < self._number and r.get("why", "").startswith(why))]


def kept_steps(journal: Journal, number: int, space: Space) -> list[Record]:
    """The steps up to a round whose payloads are kept: as many of the last as are together smaller than the whole."""
    kept: list[Record] = []
    room = broadcast.WHOLE_BYTES * space.numel
    for record in (record for n in range(number, 1, -1) for record in journal.of("OPEN", n)[:1]):
        room -= record["step_bytes"]
        if kept and room < 0:
            break
        kept.append(record)
    return kept[::-1]


def largest_task(space: Space) -> int:
    """The most bytes that a task can have: the whole adapter, of two rounds, the space's description and the head."""
    return 2 * broadcast.largest(broadcast.WHOLE, space) + len(space.to_json()) + (1 << 16)
