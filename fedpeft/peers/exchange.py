"""How two peers find out what differs, and give each other what is missing (anti-entropy).

Heads are compared with their hashes, not by length alone: two chains of one length that differ are what a cheat leaves.
The first segment in which two chains differ is found by halving, for all of them at once; fetched, it is the proof.
Of votes only who cast them is compared, and beside that the last view in which enough were for one cut: whoever voted
twice may have shown that to one of the two alone, and so it is given with all that it rests on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.peers.answering import batches, parsed, pieces, summary
from fedpeft.peers.peer import Peer

LONGEST_BESIDE = 1 << 24  # bytes of votes, proofs and rosters in one answer
_M = TypeVar("_M", bound=Message)

Call: TypeAlias = Callable[[str, bytes], Iterable[bytes]]


@dataclass(frozen=True)
class Difference:
    """What two peers' heads tell: by member, from which segment on one lacks what the other holds."""

    lacking: Mapping[int, tuple[int, int]]
    lacked: Mapping[int, tuple[int, int]]
    contrary: Mapping[int, int]  # up to where the chains of a member, which differ, are both held


def exchange(peer: Peer, other: int, call: Call) -> None:
    """Make two peers hold the same, as far as both are honest and the network lets them.

    Args:
        peer: this one.
        other: number of the member that `call` reaches.
        call: asks it: method, request, replies; what it raises goes through.

    Raises:
        FedpeftError: what came back cannot be used; what was right of it was taken.
    """
    mine, theirs = _compare(peer, call)
    if theirs.epoch > mine.epoch:
        _catch_up(peer, mine, theirs.epoch == mine.epoch + 1, call)
        mine, theirs = _compare(peer, call)
    if theirs.epoch != mine.epoch:
        return
    if theirs.root != mine.root:
        raise RefusedError(Reason.OTHER_ROUND, f"peer {other} is in epoch {mine.epoch} after another cut than this one")
    if mine.digest != theirs.digest:
        _level(peer, other, mine, theirs, call)
    with peer.lock:
        own = [head for head in theirs.heads if head.peer == peer.number]
        if peer.epoch == mine.epoch and all(peer.chains.link(head.peer, head.count) == head.hash for head in own):
            peer.heard_from(other)


def _catch_up(peer: Peer, mine: pb.Heads, lean: bool, call: Call) -> None:
    """Go on from the other's last closed epoch; its state is fetched only where it cannot be made from what is held."""
    request = pb.SnapshotRequest(run=mine.run, after=mine.epoch - 1, lean=lean)
    pieces = _bounded(call("Snapshot", request.SerializeToString()), LONGEST_BESIDE + peer.ledger.most_bytes)
    try:
        peer.adopt(b"".join(parsed(pb.Piece, piece).data for piece in pieces))
    except PayloadError as error:
        if not lean or error.defect != Defect.MISSING_PART:
            raise
        _catch_up(peer, mine, False, call)


def _level(peer: Peer, other: int, mine: pb.Heads, theirs: pb.Heads, call: Call) -> None:
    """Find what differs, take what is lacking here, give what is lacking there."""
    with peer.lock:
        both = peer.hearing.of(other, peer.chains.keys)
    found = _differences(peer, both, mine, theirs)
    wanted = pb.Wanted(run=mine.run, epoch=mine.epoch, votes=mine.votes, roster=theirs.roster > mine.roster)
    wanted.ranges.extend(pb.Range(peer=p, first=first, last=last) for p, (first, last) in found.lacking.items())
    for p, (count, differing) in _first_differences(peer, found.contrary, call).items():
        wanted.ranges.append(pb.Range(peer=p, first=differing, last=count))
    known = {head.peer: head.count for head in mine.forked}
    wanted.forked.extend(p.peer for p in theirs.forked if p.peer in both and p.count < known.get(p.peer, 1 << 32))
    if wanted.ranges or wanted.forked or wanted.roster or mine.votes != theirs.votes:
        refused = _fetch(peer, wanted, call)
        # A longer chain may differ already in what both hold, which shows only when its next segment does not fit.
        contrary = {p: first - 1 for p, (first, _) in found.lacking.items() if p in refused and first > 1}
        if contrary:
            again = pb.Wanted(run=mine.run, epoch=mine.epoch, votes=theirs.votes)
            for p, (_, differing) in _first_differences(peer, contrary, call).items():
                again.ranges.append(pb.Range(peer=p, first=differing, last=differing))
            _fetch(peer, again, call)
    _give(peer, both, mine.epoch, found, theirs, call)


def _differences(peer: Peer, both: Set[int], mine: pb.Heads, theirs: pb.Heads) -> Difference:
    """What differs of the chains of those whom both peers hear."""
    here = {head.peer: (head.count, head.hash) for head in mine.heads}
    there = {head.peer: (head.count, head.hash) for head in theirs.heads}
    forked = {head.peer: head.count for head in mine.forked}
    lacking, lacked, contrary = {}, {}, {}
    with peer.lock:
        chains = peer.chains
        for member in sorted((here.keys() | there.keys()) & both):
            count, their_count = here.get(member, (0, b""))[0], there.get(member, (0, b""))[0]
            last = min(their_count, chains.most_segments, forked.get(member, 1 << 32) - 1)
            if their_count <= count and their_count and chains.link(member, their_count) != there[member][1]:
                contrary[member] = their_count
            elif last > count:
                lacking[member] = (count + 1, last)
            elif count > their_count:
                lacked[member] = (their_count + 1, count)
    return Difference(lacking, lacked, contrary)


def _first_differences(peer: Peer, contrary: Mapping[int, int], call: Call) -> dict[int, tuple[int, int]]:
    """The first segment in which chains differ, by halving: {member: (up to where both are held, that number)}."""
    same = dict.fromkeys(contrary, 0)
    differing = dict(contrary)
    while open_ := [p for p in contrary if differing[p] - same[p] > 1]:
        middle = {p: (same[p] + differing[p]) // 2 for p in open_}
        request = pb.Heads(run=peer.terms.run, epoch=peer.epoch, root=peer.root)
        request.probes.extend(pb.Head(peer=p, count=number) for p, number in middle.items())
        reply = _one(pb.Heads, call("Heads", request.SerializeToString()))
        told = {(probe.peer, probe.count): probe.hash for probe in reply.probes}
        with peer.lock:
            links = {p: peer.chains.link(p, number) for p, number in middle.items()}
        for p, number in middle.items():
            if told.get((p, number)) == links[p]:
                same[p] = number
            else:
                differing[p] = number
    return {p: (contrary[p], differing[p]) for p in contrary}


def _fetch(peer: Peer, wanted: pb.Wanted, call: Call) -> set[int]:
    """Take what was asked for; the members whose segments did not fit."""
    with peer.lock:
        chains = peer.chains
        before = {r.peer: chains.count(r.peer) for r in wanted.ranges}
    came: set[int] = set()
    most = sum(r.last - r.first + 1 for r in wanted.ranges) * (peer.ledger.most_body + 128) + LONGEST_BESIDE
    for reply in _bounded(call("Segments", wanted.SerializeToString()), most):
        batch = parsed(pb.Batch, reply)
        for part in pieces(batch):
            peer.take(part)
        came |= {segment.peer for segment in batch.segments}
    with peer.lock:
        return {p for p in came & before.keys() if chains.count(p) == before[p]}


def _give(peer: Peer, both: Set[int], epoch: int, found: Difference, theirs: pb.Heads, call: Call) -> None:
    with peer.lock:
        if peer.epoch != epoch:
            return
        wanted = pb.Wanted(run=peer.terms.run, epoch=epoch, votes=theirs.votes)
        wanted.roster = theirs.roster < peer.newest_roster.serial
        wanted.ranges.extend(pb.Range(peer=p, first=first, last=last) for p, (first, last) in found.lacked.items())
        forks = [(member, fork) for member, fork in peer.chains.forks.items() if member in both]
    for batch in batches(peer, wanted):
        _one(pb.Taken, call("Push", batch.SerializeToString()))
    known = {head.peer: head.count for head in theirs.forked}
    for member, fork in forks:
        if fork.place[2] < known.get(member, 1 << 32):
            _one(pb.Taken, call("Proof", fork.to_proto().SerializeToString()))


def _compare(peer: Peer, call: Call) -> tuple[pb.Heads, pb.Heads]:
    """What is held here, and what the other holds: only its digest where that is the same."""
    with peer.lock:
        mine = summary(peer)
    asked = pb.Heads(run=mine.run, epoch=mine.epoch, root=mine.root, digest=mine.digest)
    theirs = _one(pb.Heads, call("Heads", asked.SerializeToString()))
    if theirs.run != mine.run:
        raise RefusedError(Reason.OTHER_RUN, f"run {theirs.run.hex()[:16]}, here is {mine.run.hex()[:16]}")
    return mine, theirs


def _one(kind: type[_M], replies: Iterable[bytes]) -> _M:
    return parsed(kind, b"".join(_bounded(replies, LONGEST_BESIDE)))


def _bounded(replies: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Replies, of which nobody sends more than was asked for."""
    left = most
    for reply in replies:
        left -= len(reply)
        if left < 0:
            raise RefusedError(Reason.BAD_PAYLOAD, f"an answer of more than {most:,} bytes")
        yield reply
