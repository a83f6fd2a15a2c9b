"""How a peer stands, as a file in its folder that any process can read."""

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from fedpeft.errors import JournalError
from fedpeft.runtime.peer.contacts import Contact
from fedpeft.runtime.peer.node import Node
from fedpeft.watching.picture import NAME, Picture, write
from fedpeft.watching.words import one_line


class MemberPicture(BaseModel):
    """How another member looks from here; times are in seconds since 1970.

    Args:
        number: on the roster.
        address: where it was reached last; "" for nowhere.
        reached: it answered when it was last asked.
        heard: when it last answered or called; None for never.
        agreed: how often all that both hold has been compared.
        segments: of its, that are held of the open epoch.
        barred: it was proven to cheat.
        sent_bytes: of messages to it.
        received_bytes: of messages from it.
        trouble: why it was not reached, or what it did wrong.
    """

    model_config = ConfigDict(extra="ignore")

    number: NonNegativeInt
    address: str = ""
    reached: bool = False
    heard: float | None = None
    agreed: NonNegativeInt = 0
    segments: NonNegativeInt = 0
    barred: bool = False
    sent_bytes: NonNegativeInt = 0
    received_bytes: NonNegativeInt = 0
    trouble: str = ""


class PeerPicture(Picture):
    """How a peer stands; of what it shares with a run's picture, a round is a closed epoch, or one of gossip.

    Args:
        mode: of the run.
        number: of this peer on the roster; 0: it is on none yet.
        peer: its name.
        address: where others reach it; "" for nowhere.
        epoch: that is open.
        segments: of its own, in the open epoch.
        most_segments: of a member in an epoch.
        roster: serial of the newest that is known.
        view: attempt at closing the open epoch, from 0.
        distance: of its adapter from the mean of what it and its neighbours have told, where it gossips; else None.
        sent_bytes: of messages to all since the process began; without what gRPC, TLS and TCP add.
        received_bytes: of messages from all.
        adapter: SHA-256 of the saved adapter's weights, hexadecimal; "" before the last epoch is closed.
        members: the others whom it hears, by name.
    """

    mode: str = ""
    number: NonNegativeInt
    peer: str
    address: str = ""
    epoch: NonNegativeInt
    segments: NonNegativeInt
    most_segments: NonNegativeInt
    roster: NonNegativeInt
    view: NonNegativeInt
    distance: float | None = None
    sent_bytes: NonNegativeInt = 0
    received_bytes: NonNegativeInt = 0
    adapter: str = ""
    members: dict[str, MemberPicture] = Field(default_factory=dict)


def read(folder: Path) -> PeerPicture:
    """The picture that a peer wrote last.

    Raises:
        JournalError: there is none, or it is damaged.
    """
    path = folder / NAME
    try:
        return PeerPicture.model_validate_json(path.read_bytes())
    except OSError as error:
        raise JournalError(f"{path}: expected the folder of a peer that has run: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        raise JournalError(
            f"{path} is damaged: {'.'.join(map(str, problem['loc']))} {problem['msg']}; the peer writes a new one"
        ) from None


class PeerStatus:
    """What is known of a peer, in memory and in its folder.

    Args:
        folder: of the peer.
        run: its name.
        peer: its name.
        epochs: in all.
        mode: of the run.
    """

    def __init__(self, folder: Path, run: str, peer: str, epochs: int, mode: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: dict[str, Any] = {"name": one_line(run), "peer": peer, "rounds": epochs, "mode": mode}
        self._kept["started"] = time.time()

    def measured(self, epoch: int, scores: Mapping[str, float], distance: float | None) -> None:
        """An epoch is closed, or a round of gossip done, and its adapter is so good and so far from the neighbours'."""
        self._note(round=epoch, loss=scores.get("loss"), accuracy=scores.get("accuracy"), distance=distance)

    def saved(self, digest: str) -> None:
        """The last epoch's adapter is saved."""
        self._note(finished=True, adapter=digest)

    def alarm(self, text: str) -> None:
        """Keep what people should know; the last of it."""
        self._note(failure=one_line(text))

    def ended(self) -> None:
        """The process lets go of the peer."""
        self._note(ended=time.time())

    def write(self, node: Node) -> None:
        """Put the picture in place; a disk that is full takes nothing from the run."""
        with contextlib.suppress(OSError):
            write(self._folder, self.picture(node).model_dump_json(indent=1))

    def picture(self, node: Node) -> PeerPicture:
        """How the peer stands now."""
        peer = node.peer
        with peer.lock:
            counts = {number: count for number, (count, _) in peer.chains.heads().items()}
            barred = {*peer.barred, *peer.chains.forks}
            facts: dict[str, Any] = {
                "number": peer.number,
                "address": node.address,
                "epoch": peer.epoch,
                "segments": counts.get(peer.number, 0),
                "most_segments": peer.terms.most_segments,
                "roster": peer.newest_roster.serial,
                "view": peer.closing.view,
            }
        members = {
            one_line(member.name): _member(number, node.contacts.seen(number), counts.get(number, 0), number in barred)
            for number, member in sorted(node.others().items())
        }
        for way in ("sent_bytes", "received_bytes"):
            facts[way] = sum(getattr(member, way) for member in members.values())
        with self._lock:
            kept = dict(self._kept)
        return PeerPicture(updated=time.time(), waiting=node.waits_for(), members=members, **facts, **kept)

    def _note(self, **facts: object) -> None:
        with self._lock:
            self._kept |= facts


def _member(number: int, contact: Contact, segments: int, barred: bool) -> MemberPicture:
    heard = None if contact.heard is None else time.time() - (time.monotonic() - contact.heard)
    return MemberPicture(
        number=number,
        address=one_line(contact.worked),
        reached=bool(contact.worked) and not contact.failures,
        heard=heard,
        agreed=contact.agreed,
        segments=segments,
        barred=barred,
        sent_bytes=contact.sent_bytes,
        received_bytes=contact.received_bytes,
        trouble=one_line(contact.trouble),
    )
