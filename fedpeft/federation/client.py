"""A client: bytes of a task in, bytes of a reply out. Every runtime wraps this one function."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from google.protobuf.message import DecodeError
from jaxtyping import Float
from torch import Tensor

from fedpeft import codecs
from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Codec, Context, ErrorFeedback
from fedpeft.errors import ConfigError, FedpeftError, Reason, RefusedError, RunError, SpaceError
from fedpeft.federation import broadcast, messages, statistics
from fedpeft.federation.client_state import ClientState, ClientStore
from fedpeft.federation.policy import Policy
from fedpeft.federation.settings import read
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space
from fedpeft.strategies import modules
from fedpeft.training import Encoded, Job, Measuring, Trainer
from fedpeft.training.base import Evaluating
from fedpeft.training.supermask import Supermask

_LONGEST, _LONGEST_TRACE = 1000, 14_000  # characters, of up to 4 bytes: a reply's head holds both


class Client:
    """One site's part in a run: apply the broadcast, train, encode, remember, reply.

    Args:
        trainer: the resident model.
        data: the site's examples.
        space: of the resident model's adapter.
        store: where its state lives.
        plugins: codecs beyond this package's that a task may name, by their expression.
        policy: what a task may ask for.
        confide: told why a task was refused, and the traceback of one that failed, of which the server then learns
            the error's class alone: a message may quote the site's data. None: the server is told everything, as
            suits a simulation.
        rank: of the site's own LoRA: it trains so many components of each product, the first ones; 0 for all.
        held_out: examples of the site's own on which it measures the adapter that it has trained, and of which it
            tells the accuracy; None: it measures nothing.

    Raises:
        ValueError: there is a rank, and the adapter has no LoRA product; or examples to measure on, and the trainer
            measures nothing.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Encoded,
        space: Space,
        store: ClientStore,
        plugins: Mapping[str, Codec | ErrorFeedback] | None = None,
        policy: Policy | None = None,
        confide: Callable[[str], None] | None = None,
        rank: int = 0,
        held_out: Encoded | None = None,
    ) -> None:
        if rank < 0 or (rank and not modules(space)):
            raise ValueError(f"rank {rank}: expected components of LoRA products, of which the adapter has none")
        self._trainer, self._data, self._space, self._store = trainer, data, space, store
        self._plugins, self._policy, self._confide = dict(plugins or {}), policy or Policy(), confide
        self._rank, self._held_out = rank, held_out
        if held_out is not None and not isinstance(trainer, Evaluating):
            raise ValueError(f"held_out: {type(trainer).__name__}, this site's trainer, measures no accuracy")

    def __call__(self, request: bytes) -> bytes:
        """Answer a task; whatever goes wrong becomes a refusal or a failure, and leaves the state as it was."""
        task = pb.Task()
        try:
            task.ParseFromString(request)
        except DecodeError as error:
            return _refusal(task, Reason.BAD_PAYLOAD, f"the task is not readable: {error}")
        try:
            return self._answer(task)
        except RefusedError as error:
            if self._confide is not None:
                self._confide(f"refused a task of round {task.round}: {error}")
            return _refusal(task, error.reason, error.detail)
        except Exception as error:
            return messages.join(pb.Reply(run=task.run, round=task.round, failure=self._failure(error)))

    def _failure(self, error: Exception) -> pb.Failure:
        trace = _sendable(traceback.format_exc()[-_LONGEST_TRACE:])
        if self._confide is None:
            return pb.Failure(error=_sendable(f"{type(error).__name__}: {error}"[:_LONGEST]), trace=trace)
        self._confide(f"failed at a task:\n{trace}")
        return pb.Failure(error=f"{type(error).__name__}; the site's own log says more")

    def _answer(self, task: pb.Task) -> bytes:
        self._policy.check(task, self._space.base)
        if task.space:
            self._check_space(task.space)
        state = self._store.load()
        if state.run != task.run:
            state = self._store.empty(task.run)
        if 0 < task.round == state.replied:
            return state.reply
        if task.round < max(state.replied, 1):
            raise RefusedError(Reason.OTHER_ROUND, f"already at round {state.replied}, asked for round {task.round}")
        state = self._follow(self._reclaim(state, task), task)
        codec = self._codec(task.codec)
        ctx = self._context(task, task.round, codec, state)
        measuring = statistics.measuring(self._trainer, task.statistics, self._space) if task.statistics else None

        began = time.perf_counter()
        missed = max(0, task.round - state.replied - 1) if state.replied else 0
        carried = torch.zeros_like(state.residual)
        if isinstance(codec, ErrorFeedback):
            carried = codec.carry(state.residual, missed)
        start = state.adapter + carried if task.settings.start == "own" else state.adapter
        job = self._job(task, start, codec, ctx)
        trained = next(iter(self._trainer.train([job])))
        delta = trained.vector - start.to(trained.vector.device)
        if not torch.isfinite(delta).all():
            raise RunError(
                f"training diverged in round {task.round}: the adapter is not finite; lower the learning rate"
            )
        beside = []
        if measuring:
            beside = self._measure(measuring, task, replace(job, start=trained.vector), state.adapter, ctx)
        half = time.perf_counter()
        payload, residual = self._encode(delta, carried, codec, state.run, ctx)
        metrics = {**trained.metrics, "train_s": half - began, "encode_s": time.perf_counter() - half}
        if isinstance(self._trainer, Evaluating) and self._held_out is not None:
            density = job.settings.supermask
            own = Supermask(self._space, density, task.seed).adapter(trained.vector) if density else trained.vector
            metrics["own_accuracy"] = self._trainer.evaluate(own, self._held_out)["accuracy"]
        update = pb.Update(weight=len(self._data), metrics=metrics, sizes=map(len, beside))
        reply = messages.join(pb.Reply(run=task.run, round=task.round, update=update), payload, *beside)
        state = replace(state, residual=residual, before=ctx.before)
        self._store.save(replace(state, replied=task.round, codec=task.codec, reply=reply))
        return reply

    def _check_space(self, description: str) -> None:
        try:
            Space.from_json(description).check(self._space)
        except SpaceError as error:
            raise RefusedError(Reason.OTHER_SPACE, str(error)) from None

    def _reclaim(self, state: ClientState, task: pb.Task) -> ClientState:
        """An update that the server did not count (late, lost) goes back into the residual.

        One that it refused for what is in it (a norm beyond the cap, say) would be refused for ever: error feedback of
        the slots that were in it begins anew.
        """
        if state.replied <= task.counted:
            return state
        codec = self._codec(state.codec)
        if not isinstance(codec, ErrorFeedback):
            return state
        if state.replied == task.refused:
            kept, refused = state.residual.clone(), codec.codec.carried(self._space, Context(task.seed, state.replied))
            for slot in refused.slots:
                self._space.view(kept, slot.name).zero_()
            return replace(state, residual=kept)
        ctx = self._context(task, state.replied, codec, state)
        head, payloads = messages.split(state.reply)
        payload, _ = messages.cut(head.update, payloads)
        sent = broadcast.unpack(payload, codec.codec, self._space, state.run, ctx)
        return replace(state, residual=state.residual + sent)

    def _follow(self, state: ClientState, task: pb.Task) -> ClientState:
        """Bring the public adapter to the task's round."""
        held, adapter, before = state.held, state.adapter, state.before
        for step in task.broadcasts:
            if step.to_round <= held:
                continue
            if step.from_round not in (0, held):
                raise RefusedError(Reason.STALE_ADAPTER, f"holds round {held}, was sent a step from {step.from_round}")
            codec = broadcast.WHOLE if step.from_round == 0 else self._codec(step.codec)
            if isinstance(codec, ErrorFeedback):
                raise RefusedError(
                    Reason.POLICY, "a broadcast carries its losses over by itself; it takes a plain codec"
                )
            try:
                ctx = Context(task.seed, step.to_round, start=adapter if codec.reads else None)
                decoded = broadcast.unpack(step.payload, codec, self._space, task.run, ctx)
            except FedpeftError as error:
                raise RefusedError(Reason.BAD_PAYLOAD, f"broadcast of round {step.to_round}: {error}") from None
            before = adapter if step.to_round == held + 1 > 1 else None
            adapter = decoded if step.from_round == 0 else broadcast.advance(adapter, decoded)
            held = step.to_round
        if held != task.round:
            raise RefusedError(Reason.STALE_ADAPTER, f"holds round {held}, was asked to train from round {task.round}")
        return replace(state, held=held, adapter=adapter, before=before)

    def _context(self, task: pb.Task, number: int, codec: Codec | ErrorFeedback, state: ClientState) -> Context:
        """The context of this client's update in a round whose public adapter the state holds."""
        plain = codec.codec if isinstance(codec, ErrorFeedback) else codec
        if "before" in plain.reads and number > 1 and state.before is None:
            raise RefusedError(Reason.STALE_ADAPTER, f"{plain!r} needs the adapter of round {number - 1} too")
        return broadcast.context(plain, task.seed, number, task.client, state.adapter, state.before)

    def _codec(self, expression: str) -> Codec | ErrorFeedback:
        if expression in self._plugins:
            return self._plugins[expression]
        try:
            return codecs.parse(expression)
        except ConfigError as error:
            raise RefusedError(Reason.POLICY, f"codec: {error}") from None

    def _job(self, task: pb.Task, start: Float[Tensor, " d"], codec: Codec | ErrorFeedback, ctx: Context) -> Job:
        order = Stream(task.seed, Purpose.DATA, task.round, task.client)
        dropout, carried = replace(order, purpose=Purpose.DROPOUT), None
        try:
            settings = read(task.settings)
            if settings.slots == "carried":
                plain = codec.codec if isinstance(codec, ErrorFeedback) else codec
                carried = frozenset(slot.name for slot in plain.carried(self._space, ctx).slots)
            return Job(start, self._data, settings, order, dropout, carried, self._rank)
        except ValueError as error:
            raise RefusedError(Reason.POLICY, f"settings: {error}") from None

    def _measure(
        self, measuring: Measuring, task: pb.Task, job: Job, public: Float[Tensor, " d"], ctx: Context
    ) -> list[bytes]:
        """The payloads of the statistics that a task asks for, of the job's start or of the public adapter."""
        least, most = self._policy.least_examples, self._policy.most_examples
        data = statistics.shareable(job.data, least)
        drawing = replace(job, order=replace(job.order, part=1), dropout=replace(job.dropout, part=1))
        found: dict[str, Tensor] = {}
        for name in dict.fromkeys(task.statistics):
            some = statistics.drawn(name, data, least, most, drawing.order)
            start = public if name in statistics.AT_START else job.start
            found |= measuring.statistics(replace(drawing, start=start, data=some), [name], len(some))
        return statistics.pack(found, self._space, task.run, ctx)

    def _encode(
        self,
        delta: Float[Tensor, " d"],
        carried: Float[Tensor, " d"],
        codec: Codec | ErrorFeedback,
        run: bytes,
        ctx: Context,
    ) -> tuple[bytes, Float[Tensor, " d"]]:
        if isinstance(codec, ErrorFeedback):
            parts, residual = codec.encode(delta, carried, self._space, ctx)
            return broadcast.pack(parts, codec.codec, self._space, run, ctx), residual
        parts = codec.encode(delta, self._space, ctx)
        return broadcast.pack(parts, codec, self._space, run, ctx), torch.zeros_like(carried)


def _refusal(task: pb.Task, reason: Reason, detail: str) -> bytes:
    refusal = pb.Refusal(reason=reason.value, detail=_sendable(detail[:_LONGEST]))
    return messages.join(pb.Reply(run=task.run, round=task.round, refusal=refusal))


def _sendable(text: str) -> str:
    """Without what no UTF-8 can say: a file's name may hold such."""
    return text.encode(errors="replace").decode()
