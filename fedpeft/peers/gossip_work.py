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

_HEAD = 24  # bytes before the adapter: the run, rounds trained, rounds pulled


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
    which all neighbours know, and what the codec had not said yet is gone with it. One that is ahead of the chain shows
    that the chain is not all that was said.

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
        self._unfit: set[int] = set()
        self.trained, self.pulled, self.adapter = self._load()
        if self.pulled > self.said and circle.number not in peer.chains.forks:
            peer.forgot(f"the own adapter holds round {self.pulled}")

    @property
    def said(self) -> int:
        """Rounds of which the neighbours are told."""
        with self._peer.lock:
            return self._peer.chains.count(self._circle.number)

    def lacking(self, number: int) -> frozenset[int]:
        """The neighbours of whom it is not held what they say in a round; of cheats nothing is lacking."""
        with self._peer.lock:
            chains = self._peer.chains
            return frozenset(n for n in self._circle.copies if n not in chains.forks and chains.count(n) < number)

    def distance(self) -> float:
        """How far the own adapter is from the mean of the circle's public copies, cheats left out, in L2 norm."""
        self._listen(self.pulled)
        cheats = self._cheats()
        copies = [copy for peer, copy in self._circle.copies.items() if peer not in cheats]
        return length(self.adapter - sum(copies[1:], copies[0]) / len(copies))

    def align(self) -> None:
        """Go on from what was said, where the own adapter is of an earlier round, or of a later one than is known."""
        said = self.said
        if self.trained < said:
            self._listen(said)
            self._keep(said, said - 1, self._circle.copies[self._circle.number].clone())
            self._alarm(f"the own adapter is older than what was said in round {said}: begun anew at its public copy")
        elif self.pulled > said:
            self._keep(said, said, self.adapter)

    def segment(self) -> bytes:
        """The body of the segment that follows; local steps are taken where that was not done before.

        A round whose training fails, or cannot be told, has no local steps, and goes on with what the neighbours learn.
        """
        self._listen(self.pulled)
        if self.trained > self.pulled:
            return self._circle.encoded(self.adapter, self.trained)
        adapter, body = self._stepped(self.pulled + 1)
        self._keep(self.pulled + 1, self.pulled, adapter)
        return body

    def pull(self) -> None:
        """Go towards what the neighbours have said up to the round at hand, as far as that is held."""
        number = self.trained
        self._listen(number)
        try:
            moved = self.adapter + self._circle.pull(number, self._cheats())
        except (PayloadError, LinAlgError) as error:
            self._alarm(f"round {number}: what the neighbours said cannot be merged: {error}")
            moved = self.adapter
        self._keep(number, number, moved if torch.isfinite(moved).all() else self.adapter)

    def _stepped(self, number: int) -> tuple[Float[Tensor, " d"], bytes]:
        """The adapter after a round's local steps, and what is said of it; without what cannot be said."""
        circle = self._circle
        try:
            trained = self._train(self.adapter, circle.number, number)
            return trained, circle.encoded(trained, number)
        except (RunError, PayloadError, ValueError) as error:
            self._alarm(f"round {number} has no local steps: {error}")
        try:
            return self.adapter, circle.encoded(self.adapter, number)
        except (PayloadError, ValueError) as error:
            self._alarm(f"round {number} begins anew at the public copy: {error}")
        own = circle.copies[circle.number].clone()
        return own, circle.encoded(own, number)

    def _cheats(self) -> set[int]:
        """The neighbours that are left out."""
        with self._peer.lock:
            return self._circle.copies.keys() & self._peer.chains.forks.keys() - {self._circle.number}

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
                    if peer not in self._unfit:
                        self._alarm(f"what peer {peer} said in round {segment.number} moves nothing: {error}")
                    self._unfit.add(peer)

    def _keep(self, trained: int, pulled: int, adapter: Float[Tensor, " d"]) -> None:
        self.trained, self.pulled, self.adapter = trained, pulled, adapter
        if self._path is not None:
            rounds = trained.to_bytes(4, "little") + pulled.to_bytes(4, "little")
            write_sealed(self._path, self._circle.manner.run + rounds + little(adapter))

    def _load(self) -> tuple[int, int, Float[Tensor, " d"]]:
        start, run = self._circle.copies[self._circle.number], self._circle.manner.run
        if self._path is not None and self._path.exists():
            try:
                kept = read_sealed(self._path)
            except JournalError:
                kept = b""
            if kept[:16] == run and len(kept) == _HEAD + 4 * start.numel():
                trained, pulled = int.from_bytes(kept[16:20], "little"), int.from_bytes(kept[20:_HEAD], "little")
                adapter = torch.from_numpy(np.frombuffer(kept, "<f4", offset=_HEAD).astype(np.float32))
                return trained, pulled, adapter
        return 0, 0, start.clone()
