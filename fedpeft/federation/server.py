"""A run: rounds one after another, each committed before the next begins."""

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedpeft.codecs import Context
from fedpeft.errors import JournalError, PayloadError, QuorumError, RunError, SpaceError
from fedpeft.federation import broadcast
from fedpeft.federation.events import Event, Happening, Watch, unwatched
from fedpeft.federation.journal import Journal, Record
from fedpeft.federation.plan import ROUNDS_SEEN, Plan
from fedpeft.federation.round import Round, Setting
from fedpeft.federation.row import row
from fedpeft.federation.state import ServerState
from fedpeft.federation.tasks import kept_steps
from fedpeft.federation.transport import Transport
from fedpeft.space import Space

_PATIENCE = 3  # rounds whose step is left out, one after another

Evaluate: TypeAlias = Callable[[Float[Tensor, " d"]], Mapping[str, float]]


class Server:
    """Runs the rounds of a plan over a transport; a journal with records in it is resumed.

    Args:
        plan: the rules.
        space: of the adapter.
        start: the adapter to begin from, shape (d,).
        transport: reaches the clients.
        journal: of this run.
        evaluate: loss and accuracy of an adapter on held-out data.
        watch: told of what happens.

    Raises:
        JournalError: the journal is of a run in another space.
        ValueError: a codec does not fit the space, or the strategy needs a statistic that it does not have.
    """

    def __init__(
        self,
        plan: Plan,
        space: Space,
        start: Float[Tensor, " d"],
        transport: Transport,
        journal: Journal,
        evaluate: Evaluate | None = None,
        watch: Watch = unwatched,
    ) -> None:
        for codec in (plan.update_codec, plan.broadcast):
            codec.layout(space)
        plan.strategy.check_space(space)
        _check_carried(plan, space)
        self._setting = Setting(plan, space, transport, journal, watch)
        self._plan, self._space, self._journal, self._evaluate = plan, space, journal, evaluate
        self.state = self._resume() if journal.records else self._begin(start)

    def run(self) -> Iterator[Record]:
        """Do the rounds that are left; yields the metrics of each once it is committed.

        Raises:
            QuorumError: too few updates were counted; the round can be taken up again.
            SiteError: so, because a site failed.
            RunError: the adapter is no longer finite.
        """
        while self.state.round < self._plan.rounds:
            yield self._round()
        self._setting.watch(Event(Happening.FINISHED, round=self.state.round))

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
            plan=self._rules(),
            before=self._scores(start),
        )
        return state

    def _resume(self) -> ServerState:
        first = self._journal.records[0]
        try:
            Space.from_json(self._journal.get(first["space"]).decode()).check(self._space)
        except SpaceError as error:
            raise JournalError(f"{self._journal.folder} is of another run: {error}") from None
        if first["plan"] != self._rules():
            raise JournalError(f"{self._journal.folder} is of another run: it began as {first['plan']}")
        state = ServerState.from_bytes(self._journal.get(self._last_state()))
        self._journal.forget(state.round)
        return state

    def _rules(self) -> str:
        """What of the plan may not change: all that decides a result, so not for whom or how long a round waits."""
        return repr(replace(self._plan, rounds=1, sites=0, quorum=1.0, deadline_s=0.0))

    def _last_state(self) -> str:
        """Digest of the state that was last committed."""
        digests = (r["state"] for r in reversed(self._journal.records) if r["kind"] in ("BEGIN", "COMMIT"))
        return str(next(digests))

    def _round(self) -> Record:
        began = time.perf_counter()
        current = Round(self._setting, self.state)
        current.collect()
        closed = time.perf_counter()
        accepted = current.accepted
        vector, optimizer, merged, left_out = self._step(current)
        state = replace(
            self.state,
            round=current.number,
            vector=vector,
            public=current.public,
            optimizer=optimizer,
            counted=self.state.counted | {record["node"]: record["base"] for record in accepted},
            refused=self.state.refused | current.spoilt,
        )
        folded = time.perf_counter()
        scores = self._scores(vector)
        ended = time.perf_counter()
        error = None if merged is None else current.counted.product_error(merged)
        seconds = {"fold_s": folded - closed, "evaluate_s": ended - folded, "round_s": ended - began}
        metrics = row(self._plan, self._space, self._journal, current.number, accepted, scores)
        metrics |= {"product_error": error, "left_out": left_out} | seconds
        self._commit(state, metrics)
        if all(row.get("left_out") for row in self.history()[-_PATIENCE:]) and current.number >= _PATIENCE:
            raise RunError(f"the steps of {_PATIENCE} rounds in a row were left out: {left_out}")
        return metrics

    def _step(self, current: Round) -> tuple[Float[Tensor, " d"], dict[str, Tensor], Float[Tensor, " d"] | None, str]:
        """The adapter and the optimizer's state after a round, the merged delta, and why the step was left out.

        What sites sent passed every check and is in the journal; a merge that fails would fail again whenever the run
        is taken up. One round is lost instead, and said to be.
        """
        try:
            merged = current.counted.merged()
            vector, optimizer = self._plan.optimizer.step(
                self.state.vector,
                merged,
                self.state.optimizer,
                self._carried({record["base"] for record in current.accepted}),
            )
            if (vector.abs() <= broadcast.LARGEST).all():
                return vector, optimizer, merged, ""
            why = "the adapter went beyond the range of fp16; lower the learning rates"
        except (LinAlgError, PayloadError, QuorumError) as error:
            why = f"the updates cannot be merged: {error}"
        facts = {"why": f"the step of round {current.number} was left out: {why}"}
        self._setting.watch(Event(Happening.ALARM, round=current.number, facts=facts))
        return self.state.vector, dict(self.state.optimizer), None, why

    def _carried(self, rounds: Collection[int]) -> Bool[Tensor, " d"]:
        """The coordinates that updates of these rounds can change."""
        spaces = [self._plan.update_codec.carried(self._space, Context(self._plan.seed, number)) for number in rounds]
        slots = {slot for space in spaces for slot in space.slots}
        within = torch.zeros(self._space.numel, dtype=torch.bool, device="cpu")
        for slot, (begin, end) in zip(self._space.slots, pairwise(self._space.bounds), strict=True):
            within[begin:end] = slot in slots
        return within

    def _commit(self, state: ServerState, metrics: Record) -> None:
        """Write the new state down, then forget what no resumption can need."""
        digest = self._journal.put(state.to_bytes())
        self._journal.append("COMMIT", round=state.round, state=digest, metrics=metrics)
        self.state = state
        steps = {record["step"] for record in kept_steps(self._journal, state.round, self._space)}
        self._journal.keep_only(steps | {digest, self._journal.records[0]["space"]})
        self._journal.forget(state.round)
        self._setting.watch(Event(Happening.COMMITTED, round=state.round, facts=metrics))

    def _scores(self, vector: Float[Tensor, " d"]) -> dict[str, float]:
        return dict(self._evaluate(vector)) if self._evaluate else {}


def _check_carried(plan: Plan, space: Space) -> None:
    """Pass where updates carry, in each round, what the strategy needs of them.

    Raises:
        ValueError: they do not.
    """
    settled = plan.strategy.settled(space)
    for number in range(1, min(plan.rounds, ROUNDS_SEEN) + 1):
        carried = {slot.name for slot in plan.update_codec.carried(space, Context(plan.seed, number)).slots}
        if plan.buffer and len(carried) < len(space.slots) and plan.strategy.least > 1:
            raise ValueError(
                f"with a buffer, {plan.update_codec} brings a slot in as few as one update, and {plan.strategy} merges "
                f"{plan.strategy.least} at least; set buffer: 0, or take a codec that carries all slots"
            )
        if left := sorted(settled - carried):
            raise ValueError(
                f"{plan.strategy} says where {left[0]!r} shall be, which {plan.update_codec} does not carry in round "
                f"{number}; take a codec that carries {len(settled)} slots in every round"
            )
