"""What a member does in an epoch of deltas: local steps, and what the codec lost of earlier ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs import ErrorFeedback
from fedpeft.durable import read_sealed, write_sealed
from fedpeft.errors import JournalError, RunError
from fedpeft.federation import Plan
from fedpeft.peers.delta import DeltaLedger, little
from fedpeft.random import Purpose, Stream
from fedpeft.training import Encoded, Job, Settings, Trainer


class DeltaWork:
    """What a member does for an epoch: some local steps from the adapter that it began with, encoded.

    All begin at that one, whatever others have published since: what is merged was made from one start.
    What the codec loses is kept for the next segment. A lost residual costs quality and nothing else, and so does a
    segment that came too late to count.

    Args:
        ledger: of the run.
        trainer: the resident model.
        data: the member's examples.
        path: of the file that holds the residual; None: it is lost with the process.
        rank: of the member's own LoRA; 0 for all.
    """

    live = False

    def __init__(
        self, ledger: DeltaLedger, trainer: Trainer, data: Encoded, path: Path | None = None, rank: int = 0
    ) -> None:
        self._ledger, self._trainer, self._data, self._path, self._rank = ledger, trainer, data, path, rank
        self._place, self._body = (0, 0, 0), b""
        self._epoch, self._residual = self._load()

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        """The body of a segment; asked again for the same one, it gives the same.

        Args:
            state: that the epoch began with.
            epoch: that it is for.
            peer: the member.
            number: of the segment, from 1.

        Raises:
            RunError: training diverged.
        """
        if self._place == (epoch, peer, number):
            return self._body
        ledger, ctx = self._ledger, self._ledger.context(epoch, peer)
        codec, carried = ledger.plan.codec, torch.zeros_like(self._residual)
        if isinstance(codec, ErrorFeedback):
            carried = codec.carry(self._residual, max(0, epoch - self._epoch - 1) if self._epoch else 0)
        start = ledger.adapter(state)
        if ledger.plan.settings.start == "own":
            start += carried
        trained = next(iter(self._trainer.train([self._job(start, epoch, peer, number)]))).vector
        if not torch.isfinite(trained).all():
            raise RunError(f"training diverged in epoch {epoch}: the adapter is not finite; lower the learning rate")
        delta = trained - start.to(trained.device)
        self._body, self._residual = ledger.seal(delta, carried, len(self._data), ctx)
        self._place, self._epoch = (epoch, peer, number), epoch
        if self._path is not None:
            write_sealed(self._path, epoch.to_bytes(4, "little") + little(self._residual))
        return self._body

    def adapter(self, state: bytes) -> Float[Tensor, " d"]:
        """The adapter of a state."""
        return self._ledger.adapter(state)

    def _job(self, start: Float[Tensor, " d"], epoch: int, peer: int, number: int) -> Job:
        plan, space, carried = self._ledger.plan, self._ledger.space, None
        if plan.settings.slots == "carried":
            sent = plan.update_codec.carried(space, self._ledger.context(epoch, peer))
            carried = frozenset(slot.name for slot in sent.slots)
        order, dropout = (
            Stream(plan.seed, purpose, epoch, peer, number - 1) for purpose in (Purpose.DATA, Purpose.DROPOUT)
        )
        return Job(start, self._data, in_epoch(plan, epoch), order, dropout, carried, self._rank)

    def _load(self) -> tuple[int, Float[Tensor, " d"]]:
        numel = self._ledger.space.numel
        if self._path is not None and self._path.exists():
            try:
                kept = read_sealed(self._path)
            except JournalError:
                kept = b""
            if len(kept) == 4 + 4 * numel:
                residual = torch.from_numpy(np.frombuffer(kept, "<f4", offset=4).astype(np.float32))
                return int.from_bytes(kept[:4], "little"), residual
        return 0, torch.zeros(numel)


def in_epoch(plan: Plan, epoch: int) -> Settings:
    """How members train in an epoch."""
    return replace(plan.settings, learning_rate=plan.learning_rate(min(epoch, plan.rounds)))
