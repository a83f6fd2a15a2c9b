"""The organiser's part: a run's description, and rosters of who takes part, each signed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.config import ModelSection
from fedpeft.config.peer import PeerRun, load_run
from fedpeft.durable import write_durably
from fedpeft.errors import IdentityError
from fedpeft.keys.peer import Card
from fedpeft.keys.signing import SigningKey
from fedpeft.peers.cut import quorum
from fedpeft.peers.roster import Member, Roster
from fedpeft.preparation import Prepared, Say, prepare

RUN, KEY, ROSTER, _PAST = "run.yaml", "organiser.key", "roster.json", "rosters"


@dataclass(frozen=True)
class Rosters:
    """What a file of rosters holds.

    Args:
        first: of the run's first epoch, which everybody begins with.
        newest: that the organiser signed.
    """

    first: Roster
    newest: Roster

    @classmethod
    def load(cls, path: Path, run: bytes, organiser: bytes) -> "Rosters":
        """The rosters of a file.

        Raises:
            IdentityError: it cannot be read, is of another run, or was not signed by the run's organiser.
        """
        try:
            told: Any = json.loads(path.read_bytes())
            if bytes.fromhex(told["run"]) != run:
                raise ValueError("it is of another run than run.yaml")
            first, newest = (_roster(run, one).check(organiser) for one in told["rosters"])
        except OSError as error:
            raise IdentityError(f"{path}: expected a roster, as the organiser sends it: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IdentityError) as error:
            raise IdentityError(f"{path}: expected a roster, as the organiser sends it: {error}") from None
        return cls(first, newest)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        told = {"run": self.first.run.hex(), "rosters": [_told(self.first), _told(self.newest)]}
        write_durably(path, json.dumps(told, indent=1).encode() + b"\n")


def init(folder: Path, described: PeerRun, say: Say = lambda text: None, start: Path | None = None) -> PeerRun:
    """Make an organiser's key and the run's description, with the hashes of what all begin with.

    Args:
        folder: where to; made if it does not exist.
        described: the run, without organiser and hashes.
        say: told what is being prepared.
        start: folder of an adapter that the run goes on from; None: it begins with one drawn from the seed.

    Raises:
        IdentityError: a run is there already.
        ConfigError: the base model cannot be loaded.
        SpaceError: the adapter is not of this base model or this PEFT config, or cannot be read.
    """
    for name in (KEY, RUN):
        if (folder / name).exists():
            raise IdentityError(f"{folder / name} is there already and is never overwritten; choose another folder")
    model = ModelSection(**described.model.model_dump())
    prepared = prepare(model, described.peft, None, described.labels, described.seed, say)
    if start is not None:
        prepared.begin_at(start)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = SigningKey()
    base, begun = hashes(prepared)
    run = described.model_copy(update={"organiser": key.public.hex(), "base_sha256": base, "start_sha256": begun})
    key.save(folder / KEY)
    write_durably(folder / RUN, run.to_yaml().encode())
    return run


def hashes(prepared: Prepared) -> tuple[str, str]:
    """What all peers must have alike: the base model's weights, and the adapter before the first epoch; hexadecimal."""
    start = prepared.trainer.adapted.read().numpy()
    hashed = hashlib.sha256(prepared.space.fingerprint + start.astype("<f4").tobytes())
    return prepared.space.base, hashed.hexdigest()


def admit(folder: Path, cards: Sequence[Path], *, anyway: bool = False) -> Roster:
    """Put peers on the next roster, or change what it says of those who are on it; returns that roster, signed.

    Where epochs are closed by votes, those who are on the roster must be more than two thirds of the next one: else
    newcomers that never start keep all epochs from closing, and with them any roster that would leave these out.

    Args:
        folder: the organiser's.
        cards: as the peers sent them.
        anyway: although newcomers would be a third or more.

    Raises:
        IdentityError: a card is not of this run, or of a name or a key that somebody else has, or the newcomers are too
            many.
    """
    run, rosters = load_run(folder / RUN), _signed(folder)
    members = {member.name: member for member in rosters[-1].members} if rosters else {}
    free = 1 + max((member.number for roster in rosters for member in roster.members), default=0)
    for path in cards:
        card = Card.load(path)
        if card.run != run.id:
            raise IdentityError(f"{path}: is of run {card.run.hex()[:16]}, expected {run.id.hex()[:16]}")
        held = members.get(card.name)
        if held is not None and held.key != card.key:
            raise IdentityError(f"{path}: {card.name!r} is on the roster with another key; dismiss it first")
        number = held.number if held is not None else free
        free += held is None
        members[card.name] = Member(number, card.name, card.key, card.certificate, card.addresses)
    if rosters and not anyway and run.mode != "gossip":
        check_newcomers(rosters[-1], members.values())
    return _sign(folder, run, rosters, members.values())


def dismiss(folder: Path, names: Sequence[str]) -> Roster:
    """Leave peers out of the next roster; returns that roster, signed.

    Raises:
        IdentityError: a name is not on the roster, or nobody would be left.
    """
    run, rosters = load_run(folder / RUN), _signed(folder)
    members = {member.name: member for member in rosters[-1].members} if rosters else {}
    for name in names:
        if members.pop(name, None) is None:
            raise IdentityError(f"{name!r} is not on the roster, which has {', '.join(members) or 'nobody'}")
    return _sign(folder, run, rosters, members.values())


def check_newcomers(now: Roster, following: Iterable[Member]) -> None:
    """Pass where those on a roster can close epochs whether the new ones on the next start or not.

    Raises:
        IdentityError: they cannot.
    """
    new = [member.name for member in following if member.number not in now.by_number]
    there = len(now.members)
    needed = quorum(there + len(new))
    if not new or there >= needed:
        return
    few = max(n for n in range(len(new)) if there >= quorum(there + n))
    first = f"admit {few} at most, and more of them once an epoch has closed with these; or" if few else "if they will,"
    raise IdentityError(
        f"{', '.join(new)}: {needed} of {there + len(new)} members would have to vote, more than two thirds, and "
        f"{there} are there now. Should the new ones not start, no epoch would close, and no later roster would hold: "
        f"{first} insist with --anyway"
    )


def _signed(folder: Path) -> list[Roster]:
    """All rosters that were ever signed here, oldest first."""
    run = load_run(folder / RUN)
    paths = sorted((folder / _PAST).glob("*.json"))
    return [Rosters.load(path, run.id, bytes.fromhex(run.organiser)).newest for path in paths]


def _sign(folder: Path, run: PeerRun, rosters: Sequence[Roster], members: Iterable[Member]) -> Roster:
    key = SigningKey.load(folder / KEY)
    if key.public.hex() != run.organiser:
        raise IdentityError(f"{folder / KEY}: is not the key of the organiser in {RUN}; restore both from one backup")
    try:
        ordered = tuple(sorted(members, key=lambda member: member.number))
        following = rosters[-1].next(ordered) if rosters else Roster(run.id, 1, ordered)
    except ValueError as error:
        raise IdentityError(str(error)) from None
    signed = following.signed(key)
    both = Rosters(rosters[0] if rosters else signed, signed)
    (folder / _PAST).mkdir(exist_ok=True)
    both.save(folder / _PAST / f"{signed.serial:06}.json")
    both.save(folder / ROSTER)
    return signed


def _told(roster: Roster) -> dict[str, object]:
    members = [
        {
            "number": member.number,
            "name": member.name,
            "key": member.key.hex(),
            "certificate": member.certificate.hex(),
            "addresses": member.addresses,
        }
        for member in roster.members
    ]
    return {"serial": roster.serial, "members": members, "signature": roster.signature.hex()}


def _roster(run: bytes, told: Any) -> Roster:
    members = (
        Member(
            int(one["number"]),
            str(one["name"]),
            bytes.fromhex(one["key"]),
            bytes.fromhex(one["certificate"]),
            tuple(map(str, one["addresses"])),
        )
        for one in told["members"]
    )
    return Roster(run, int(told["serial"]), tuple(members), bytes.fromhex(told["signature"]))
