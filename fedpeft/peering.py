"""One peer's installation: the model resident, the keys read, what it holds taken up, ready to run."""

import hashlib
from types import TracebackType
from typing import Self

from jaxtyping import Float
from torch import Tensor

from fedpeft._proto import peer_pb2 as pb
from fedpeft.config import ModelSection
from fedpeft.config.peer import PeerConfig, load_run
from fedpeft.durable import write_durably
from fedpeft.errors import ConfigError, FedpeftError, IdentityError, SpaceError
from fedpeft.keys.peer import pair
from fedpeft.keys.signing import SigningKey
from fedpeft.membership import Rosters, hashes
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Roster
from fedpeft.peers.store import FolderStore
from fedpeft.peers.terms import Terms
from fedpeft.preparation import Prepared, Say, prepare
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.limits import Limits
from fedpeft.runtime.peer.node import Node, Ways
from fedpeft.runtime.peer.parts import Parts, parts
from fedpeft.runtime.peer.trust import Trust
from fedpeft.watching.peer import PeerPicture, PeerStatus


class Peering:
    """A peer ready to run; use it as a context manager.

    Args:
        config: its description.
        say: told what is being prepared, and what happens.
        restored: its folder comes from a backup, or was lost.
        until: run until so many epochs are closed, or rounds of gossip done; None: until all are.

    Raises:
        ConfigError: the description, the base model or the data cannot be used.
        IdentityError: keys or rosters cannot be used, or this peer is on no roster.
        SpaceError: the base model, or the adapter that is begun with, is not the run's.
        JournalError: another process is this peer, or its folder is damaged.
        RunError: the address cannot be listened on.
    """

    def __init__(
        self, config: PeerConfig, say: Say = lambda text: None, *, restored: bool = False, until: int | None = None
    ) -> None:
        self._config, self._say, self._looked = config, say, 0.0
        self._run = load_run(config.run)
        self.epochs = min(self._run.epochs, until or self._run.epochs)
        key, shown, rosters = SigningKey.load(config.keys / "peer.key"), pair(config.keys), self._rosters()
        names = [m.name for m in (*rosters.first.members, *rosters.newest.members) if m.key == key.public]
        if not names:
            raise IdentityError(
                f"{config.roster}: does not have this peer; send its card to the organiser, and ask for the next roster"
            )
        self._store = FolderStore(config.folder)
        self._status = PeerStatus(config.folder, self._run.name, names[-1], self.epochs, self._run.mode)
        try:
            prepared = self._prepare()
            self._trainer, self._test = prepared.trainer, prepared.trainer.encode(prepared.test[: config.test_examples])
            self.examples, self.space = len(prepared.train), prepared.space
            made, run = self._parts(prepared, rosters.first), self._run
            self.peer = Peer(
                Terms(run.id, bytes.fromhex(run.organiser), run.most_segments, run.patience_s),
                key,
                rosters.first,
                made.ledger,
                self._store,
                hearing=made.hearing,
                restored=restored,
                alarm=self._alarmed,
            )
            self.peer.take(pb.Batch(roster=rosters.newest.to_proto()))
            self.node = self._node(made, Trust(self.peer, key.public, shown))
        except BaseException:
            self._store.close()
            raise

    def run(self) -> bool:
        """Take part; whether that came to its end, or else it was stopped.

        Raises:
            RunError: the training diverged, or nobody hears this peer any more.
        """
        self._status.write(self.node)
        try:
            return self.node.run()
        finally:
            self._status.ended()
            self._status.write(self.node)

    def picture(self) -> PeerPicture:
        """How the peer stands now."""
        return self._status.picture(self.node)

    def stop(self) -> None:
        """Make `run` return; may be called from any thread."""
        self.node.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def _prepare(self) -> Prepared:
        run, own = self._run, self._config.model
        told = run.model.model_dump() | own.model_dump() | {"name": own.name or run.model.name}
        source = self._config.data.source
        prepared = prepare(ModelSection(**told), run.peft, source, run.labels, run.seed, self._say)
        if not prepared.train:
            raise ConfigError(f"data.source: {source} has no example to train on")
        if self._config.start is not None:
            prepared.begin_at(self._config.start)
        base, start = hashes(prepared)
        if base != run.base_sha256:
            raise SpaceError(
                f"{told['name']}: expected weights of SHA-256 {run.base_sha256[:16]}..., got {base[:16]}..."
            )
        if start != run.start_sha256:
            raise SpaceError(
                f"the adapter before training: expected SHA-256 {run.start_sha256[:16]}..., got {start[:16]}...; take "
                "the versions of fedpeft, torch and peft that the organiser has, or, where the organiser sent an "
                "adapter to begin with, name its folder as `start`"
            )
        return prepared

    def _parts(self, prepared: Prepared, first: Roster) -> Parts:
        config, trainer = self._config, prepared.trainer
        try:
            return parts(self._run, trainer, trainer.encode(prepared.train), config.folder, first)
        except ValueError as error:
            raise ConfigError(f"{config.run}: does not fit this adapter, or its roster: {error}") from None

    def _node(self, made: Parts, trust: Trust) -> Node:
        config, ledger = self._config, made.ledger
        fixed = {name: (place,) for name, place in config.peers.items()}
        return Node(
            self.peer,
            made.course(self.peer, self.epochs, self._done, self._alarmed),
            trust,
            Contacts(fixed, config.every_s),
            Ways(config.listen, config.address, config.every_s, config.fanout, config.stay_s),
            Limits(config.deadline_s, ledger.most_bytes, ledger.most_body, config.keepalive_s),
            house=self._keep_house,
            say=self._say,
        )

    def _done(self, epoch: int, adapter: Float[Tensor, " d"], distance: float | None) -> None:
        """An epoch is closed, or a round of gossip done: measure the adapter and save it."""
        vector = adapter.cpu()
        scores = dict(self._trainer.evaluate(vector, self._test)) if len(self._test) else {}
        self._status.measured(epoch, scores, distance)
        what = (
            f"epoch {epoch} of {self.epochs} is closed"
            if distance is None
            else f"round {epoch} of {self.epochs} is done"
        )
        self._say(what + "".join(f", {k} {v:.3f}" for k, v in scores.items()))
        folder = self._config.folder / "adapter"
        self._trainer.adapted.adapter(vector).save(folder)
        if epoch < self.epochs:
            return
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        write_durably(self._config.folder / "adapter.sha256", f"{digest}\n".encode())
        self._status.saved(digest)
        self._say(f"adapter {folder}, SHA-256 {digest}")

    def _rosters(self) -> Rosters:
        return Rosters.load(self._config.roster, self._run.id, bytes.fromhex(self._run.organiser))

    def _keep_house(self) -> None:
        """Take a newer roster from its file, and tell how all stands."""
        try:
            changed = self._config.roster.stat().st_mtime
            if changed != self._looked:
                self._looked = changed
                newest = self._rosters().newest
                if self.peer.take(pb.Batch(roster=newest.to_proto())):
                    self._say(f"roster {newest.serial}, of {len(newest.members)} members, holds from the next epoch on")
        except (FedpeftError, OSError) as error:
            self._alarmed(f"the roster is not read again: {error}")
        self._status.write(self.node)

    def _alarmed(self, text: str) -> None:
        self._status.alarm(text)
        self._say(text)
