"""One round of a server: who is asked, whose replies are counted, and when it closes."""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedpeft.errors import QuorumError, Reason, RefusedError, SiteError
from fedpeft.federation.counted import Counted
from fedpeft.federation.events import Event, Happening, Watch
from fedpeft.federation.journal import Journal, Record
from fedpeft.federation.plan import Plan
from fedpeft.federation.replies import Checked, FailedError, Replies
from fedpeft.federation.state import ServerState
from fedpeft.federation.tasks import Tasks, publish
from fedpeft.federation.transport import Arrival, NodeId, Parcel, Transport
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space

_FINAL = (Reason.BAD_PAYLOAD, Reason.FAILED, Reason.POLICY, Reason.OTHER_SPACE, Reason.OTHER_RUN, Reason.OTHER_ROUND)
_GIVEN_UP = 8  # rounds
_METRICS = ("loss", "own_accuracy", "train_s", "encode_s")


@dataclass(frozen=True, eq=False)
class Setting:
    """What all rounds of a run have in common.

    Args:
        plan: the rules.
        space: of the adapter.
        transport: reaches the clients.
        journal: of the run.
        watch: told of what happens.
        at_work: of a buffered run: the round, and the bytes, of the task that each node is at work on.
    """

    plan: Plan
    space: Space
    transport: Transport
    journal: Journal
    watch: Watch
    at_work: dict[NodeId, tuple[int, Parcel]] = field(default_factory=dict)


class Round:
    """A round from its opening to its close; what the journal already holds of it is not done again.

    Args:
        setting: of the run.
        state: the server after the round before.

    Raises:
        QuorumError: there is no client to ask, or the plan's root is not there.
    """

    def __init__(self, setting: Setting, state: ServerState) -> None:
        self._plan, self._space, self._journal = setting.plan, setting.space, setting.journal
        self._setting, self._state = setting, state
        self.number = state.round + 1
        self.public, step = publish(self._plan, self._space, self._journal, state, self.number)
        if len(self._journal.of("OPEN", self.number)) <= len(self._journal.of("FAIL", self.number)):
            self._open(step)
        self._cohort: Sequence[NodeId] = self._journal.of("OPEN", self.number)[-1]["cohort"]
        clients = _numbers(self._journal, self.number)
        self._wanted = self._plan.buffer or len(self._cohort)
        self._needed = self._plan.needed(self._wanted)
        before = state.public if self.number > 1 else None
        self._replies = Replies(self._plan, self._space, state.run, clients, self.public, before)
        merged = self._needed - bool(self._plan.root)
        self._tasks = Tasks(self._plan, self._space, self._journal, state, self.number, self.public, clients, merged)

    @property
    def accepted(self) -> list[Record]:
        """The updates that are counted, in node order; of one node's, in the order of the rounds they answer."""
        return sorted(self._journal.of("ACCEPT", self.number), key=lambda record: (record["node"], record["base"]))

    @property
    def counted(self) -> Counted:
        """What there is to merge."""
        return Counted(self._plan, self._space, self._journal, self._replies, self.public, self.number, self.accepted)

    @property
    def spoilt(self) -> dict[NodeId, int]:
        """The nodes whose update was refused for what was in it, and the round that it answered."""
        return {r["node"]: r["base"] for r in self._refused() if r["why"].startswith(Reason.BAD_PAYLOAD)}

    def collect(self) -> None:
        """Ask, count what comes back, and close.

        Raises:
            QuorumError: too few updates were counted; the round can be taken up again.
            SiteError: so, because a site failed.
        """
        if self._journal.of("CLOSE", self.number):
            return
        until = time.monotonic() + self._plan.deadline_s
        if self._plan.buffer:
            self._fill(until)
        else:
            self._gather(until)
        self._check_quorum()
        self._journal.append("CLOSE", round=self.number)

    def _open(self, step: bytes) -> None:
        """Choose who is asked: of who is there now, and, where the round is taken up again, who was counted before."""
        counted = {record["node"] for record in self.accepted}
        nodes = sorted(set(self._setting.transport.nodes()) - counted)
        if not nodes and not counted:
            raise QuorumError(f"round {self.number}: there is no client to ask")
        root = {self._plan.root} - {""}
        if missing := root - counted - set(nodes):
            raise QuorumError(
                f"round {self.number}: the root, {missing.pop()!r}, is not there; {len(nodes)} others are"
            )
        known = _numbers(self._journal, self.number)
        new = sorted(set(nodes) - known.keys())
        drawn = [node for node in nodes if node not in root]
        order = Stream(self._plan.seed, Purpose.COHORT, self.number).permutation(len(drawn))
        places = max(0, self._plan.cohort - len(counted | root)) if self._plan.cohort else len(drawn)
        cohort = sorted(counted | root | {drawn[i] for i in order[:places]})
        self._journal.append(
            "OPEN",
            round=self.number,
            cohort=cohort,
            enrolled={node: len(known) + i for i, node in enumerate(new, 1)},
            step=self._journal.put(step),
            step_bytes=len(step),
        )
        self._tell(Happening.OPENED, cohort=len(cohort))

    def _gather(self, until: float) -> None:
        """Wait for all who are asked; a site that lost the adapter is asked again with the whole of it."""
        refused = self._refused()
        done = {record["node"] for record in self.accepted} | {r["node"] for r in refused if r["final"]}
        lost = {record["node"] for record in refused if record["why"].startswith(Reason.STALE_ADAPTER)}
        new = [node for node in self._cohort if node not in done]
        requests: dict[NodeId, Parcel] = {}
        while new:
            fresh = {node: self._tasks.task(node, node in lost) for node in new}
            self._ask(fresh)
            requests |= fresh
            new = []
            for arrival in self._setting.transport.exchange(requests, max(0.0, until - time.monotonic())):
                requests.pop(arrival.node, None)
                error = self._receive(arrival, self.number, late=time.monotonic() > until)
                if error and error.reason is Reason.STALE_ADAPTER and arrival.node not in lost:
                    lost.add(arrival.node)
                    new = [arrival.node]
                    break

    def _fill(self, until: float) -> None:
        """Count whatever comes until the buffer is full; who has answered works on from the newest adapter.

        Nguyen et al., 2022 (arXiv 2106.06639), Algorithm 1. A node trains from each adapter once, so it rests where
        it has answered the newest already; the buffer is full with updates of as many nodes. What a node was asked for
        long ago is given up once it is away.
        """
        at_work = self._setting.at_work
        for node in at_work.keys() - set(self._cohort):
            if self.number - at_work[node][0] >= _GIVEN_UP:
                del at_work[node]
        lost: set[NodeId] = set()
        spent = {r["node"] for r in self._refused() if r["final"] and r["base"] == self.number}
        while len({record["node"] for record in self.accepted}) < self._wanted:
            done = spent | {r["node"] for r in self.accepted if r["base"] == self.number}
            new = {n: self._tasks.task(n, n in lost) for n in self._cohort if n not in at_work and n not in done}
            self._ask(new)
            at_work |= {node: (self.number, data) for node, data in new.items()}
            requests = {node: data for node, (_, data) in at_work.items()}
            replies = self._setting.transport.exchange(requests, max(0.0, until - time.monotonic()))
            arrival = next(iter(replies), None)
            if arrival is None:
                return
            base, _ = at_work.pop(arrival.node, (self.number, None))
            error = self._receive(arrival, base, late=False)
            if error and error.reason is Reason.STALE_ADAPTER and arrival.node not in lost:
                lost.add(arrival.node)
            elif error and base == self.number:
                spent.add(arrival.node)

    def _ask(self, requests: dict[NodeId, Parcel]) -> None:
        if requests:
            self._journal.append("ASK", round=self.number, bytes={node: len(data) for node, data in requests.items()})
        for node, data in requests.items():
            self._tell(Happening.ASKED, node, down_bytes=len(data))

    def _receive(self, arrival: Arrival, base: int, late: bool) -> RefusedError | None:
        """Count a reply, or write down why not; of an update that is refused nothing else is kept."""
        facts: Record = {"round": self.number, "base": base, "node": arrival.node, "up_bytes": len(arrival.data)}
        try:
            if late:
                raise RefusedError(Reason.LATE, f"round {self.number} waits {self._plan.deadline_s:g} s for replies")
            update = self._check(arrival, base)
        except RefusedError as error:
            # Who is done with is not asked again when the round is taken up; the others' own reply may still come.
            final = error.reason in _FINAL or late
            trace = error.trace if isinstance(error, FailedError) else ""
            attempt = len(self._journal.of("FAIL", self.number))
            self._journal.append("REFUSE", why=str(error), final=final, attempt=attempt, trace=trace, **facts)
            self._tell(Happening.REFUSED, arrival.node, up_bytes=len(arrival.data), why=str(error))
            return error
        metrics = {name: update.metrics[name] for name in _METRICS if abs(update.metrics.get(name, math.inf)) < 1e9}
        payload = self._journal.put(update.payload)
        statistics = {name: self._journal.put(one) for name, one in update.statistics.items()}
        reply = hashlib.sha256(arrival.data).hexdigest()
        kept = {"payload": payload, "statistics": statistics, "reply": reply}
        self._journal.append("ACCEPT", weight=update.weight, metrics=metrics, **kept, **facts)
        more = {"chosen": update.chosen} if update.chosen else {}
        self._tell(Happening.COUNTED, arrival.node, up_bytes=len(arrival.data), weight=update.weight, **metrics, **more)
        return None

    def _check(self, arrival: Arrival, base: int) -> Checked:
        if arrival.node not in self._cohort and base == self.number:
            raise RefusedError(Reason.NOT_ASKED, f"node {arrival.node!r} is not in the cohort of round {self.number}")
        for record in self._journal.of("ACCEPT", self.number):
            if (record["node"], record["base"]) == (arrival.node, base):
                if record["reply"] != hashlib.sha256(arrival.data).hexdigest():
                    self._tell(Happening.ALARM, arrival.node, why="it sent two different updates; the first counts")
                raise RefusedError(
                    Reason.DUPLICATE, f"node {arrival.node!r} was counted in round {self.number} already"
                )
        return self._replies.check(arrival, base)

    def _tell(self, kind: Happening, node: NodeId = "", /, **facts: object) -> None:
        self._setting.watch(Event(kind, node, self.number, facts))

    def _refused(self) -> list[Record]:
        """The refusals of this attempt: one that ends below quorum makes all of them void."""
        attempt = len(self._journal.of("FAIL", self.number))
        return [record for record in self._journal.of("REFUSE", self.number) if record["attempt"] == attempt]

    def _check_quorum(self) -> None:
        counted = len({record["node"] for record in self.accepted})
        if counted >= self._needed:
            return
        refused = self._refused()
        self._journal.append("FAIL", round=self.number)
        for record in refused:
            if record["trace"]:
                raise SiteError(record["node"], record["trace"])
        reasons = "; ".join(f"{record['node']}: {record['why']}" for record in refused)
        reasons = reasons or f"nobody else answered within {self._plan.deadline_s:g} s"
        raise QuorumError(
            f"round {self.number}: {counted} of {self._wanted} clients were counted, {self._needed} needed: {reasons}"
        )


def _numbers(journal: Journal, number: int) -> dict[NodeId, int]:
    """The clients' numbers, as they were enrolled up to a round."""
    opened = (record for n in range(1, number + 1) for record in journal.of("OPEN", n))
    return {node: client for record in opened for node, client in record["enrolled"].items()}
