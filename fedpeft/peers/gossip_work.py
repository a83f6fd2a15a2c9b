"""What a member does where peers gossip: it trains from its own adapter, and goes towards its neighbours'."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedpeft.durable import read_sealed, write_sealed
from fedpeft.errors import JournalError, PayloadError, RunError
from fedpeft.federation import Plan
from fedpeft.peers.delta import length, little
from fedpeft.peers.delta_work import in_epoch
from fedpeft.peers.gossip import Circle, Step
from fedpeft.peers.peer import Peer
from fedpeft.random import Purpose, Stream
from fedpeft.training import Encoded, Job, Trainer

_HEAD = 8  # bytes before the adapter: rounds trained, rounds pulled


def steps(plan: Plan, trainer: Trainer, data: Encoded) -> Step:
    """Local steps from an adapter, in a round.

    Args:
        plan: how all train; its rounds are those of the run.
        trainer: the resident model.
        data: the member's examples.
    """

    def train(adapter: Float[Tensor, " d"], peer: int, number: int) -> Float[Tensor, " d"]:
        order, dropout = (Stream(plan.seed, purpose, number, peer) for purpose in (Purpose.DATA, Purpose.DROPOUT))
        return next(iter(trainer.train([Job(adapter, data, in_epoch(plan, number), order, dropout)]))).vector.cpu()

    return train


class GossipWork:
    """A member's rounds: local steps, a segment that tells its neighbours, and a step towards what they have told.

    Public copies follow from the chains that the peer holds, so the own adapter is all that is kept beside them. In a
    round each copy moves by what its member said up to that round and no further, whatever is held already: who is
    stopped anywhere and goes on comes to the same bits. An adapter that was lost is begun anew at its public copy,
    which all neighbours know, and what the codec had not said yet is gone with it.

    Args:
        peer: holds the chains of the member and its neighbours.
        circle: of the same; nothing has been heard yet.
        train: local steps.
        path: of the file that holds the own adapter; None: it is lost with the process.
        alarm: told of what people should know.

    Attributes:
        trained: rounds whose local steps are done.
        pulled: rounds that are done altogether; one less than `trained`, or as many.
        adapter: the member's own.
    """

    def __init__(
        self,
        peer: Peer,
        circle: Circle,
        train: Step,
        path: Path | None = None,
        alarm: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._peer, self._circle, self._train = peer, circle, train
        self._path, self._alarm = path, alarm
        self.trained, self.pulled, self.adapter = self._load()

    @property
    def said(self) -> int:
        """Rounds of which the neighbours are told."""
        with self._peer.lock:
            return self._peer.chains.count(self._circle.number)

    def lacking(self) -> frozenset[int]:
        """The neighbours of whom it is not held what they say in the round at hand; of cheats nothing is lacking."""
        with self._peer.lock:
            chains = self._peer.chains
            return frozenset(n for n in self._circle.copies if n not in chains.forks and chains.count(n) <= self.pulled)

    def distance(self) -> float:
        """How far the own adapter is from the mean of the circle's public copies, in L2 norm."""
        copies = list(self._circle.copies.values())
        return length(self.adapter - sum(copies[1:], copies[0]) / len(copies))

    def align(self) -> None:
        """Go on from what was said, where the own adapter is of an earlier round, or of a later one than is known."""
        said = self.said
        if self.trained < said:
            self._listen(said)
            self.trained, self.pulled, self.adapter = said, said - 1, self._circle.copies[self._circle.number].clone()
            self._alarm(f"the own adapter is older than what was said in round {said}: begun anew at its public copy")
        elif self.pulled > said:
            self.trained = self.pulled = said

    def segment(self) -> bytes:
        """The body of the segment that follows; local steps are taken where that was not done before.

        A round whose training fails has no local steps, and goes on with what the neighbours learn.
        """
        self._listen(self.pulled)
        if self.trained == self.pulled:
            self._keep(self.pulled + 1, self.pulled, self._stepped(self.pulled + 1))
        return self._circle.encoded(self.adapter, self.trained)

    def pull(self) -> None:
        """Go towards what the neighbours have said up to the round at hand, as far as that is held."""
        number = self.trained
        self._listen(number)
        with self._peer.lock:
            cheats = self._circle.copies.keys() & self._peer.chains.forks.keys()
        try:
            moved = self.adapter + self._circle.pull(number, cheats)
        except (PayloadError, LinAlgError) as error:
            self._alarm(f"round {number}: what the neighbours said cannot be merged: {error}")
            moved = self.adapter
        self._keep(number, number, moved if torch.isfinite(moved).all() else self.adapter)

    def _stepped(self, number: int) -> Float[Tensor, " d"]:
        try:
            trained = self._train(self.adapter, self._circle.number, number)
        except RunError as error:
            self._alarm(f"round {number} has no local steps: {error}")
            return self.adapter
        if not torch.isfinite(trained).all():
            self._alarm(f"round {number} has no local steps: training diverged; lower the learning rate")
            return self.adapter
        return trained

    def _listen(self, number: int) -> None:
        """Move each public copy by what its member said up to a round, as far as that is held."""
        for peer, before in list(self._circle.heard.items()):
            with self._peer.lock:
                segments = self._peer.chains.segments(peer, before + 1, number)
            for segment in segments:
                try:
                    self._circle.hear(peer, segment.number, segment.body)
                except PayloadError as error:
                    self._circle.heard[peer] = segment.number
                    self._alarm(f"what peer {peer} said in round {segment.number} moves nothing: {error}")

    def _keep(self, trained: int, pulled: int, adapter: Float[Tensor, " d"]) -> None:
        self.trained, self.pulled, self.adapter = trained, pulled, adapter
        if self._path is not None:
            head = trained.to_bytes(4, "little") + pulled.to_bytes(4, "little")
            write_sealed(self._path, head + little(adapter))

    def _load(self) -> tuple[int, int, Float[Tensor, " d"]]:
        start = self._circle.copies[self._circle.number]
        if self._path is not None and self._path.exists():
            try:
                kept = read_sealed(self._path)
            except JournalError:
                kept = b""
            if len(kept) == _HEAD + 4 * start.numel():
                trained, pulled = int.from_bytes(kept[:4], "little"), int.from_bytes(kept[4:_HEAD], "little")
                adapter = torch.from_numpy(np.frombuffer(kept, "<f4", offset=_HEAD).astype(np.float32))
                return trained, pulled, adapter
        return 0, 0, start.clone()
