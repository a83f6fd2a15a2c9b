"""How two peers find out what differs, and give each other what is missing (anti-entropy).

Heads are compared with their hashes, not by length alone: two chains of one length that differ are what a cheat leaves.
The first segment in which two chains differ is found by halving, for all of them at once; fetched, it is the proof.
Of votes only who cast them is compared, and beside that the last view in which enough were for one cut: whoever voted
twice may have shown that to one of the two alone, and so it is given with all that it rests on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.keys.signing import digest
from fedpeft.peers.cut import Proposal, Vote
from fedpeft.peers.peer import Peer
from fedpeft.peers.snapshot import without_state

LONGEST_BESIDE = 1 << 24  # bytes of votes, proofs and rosters in one answer
_PIECE = 1 << 16
_MOST_RANGES = 4096
_PROPOSAL, _ENOUGH = 0, 3  # kinds of what is held in a view, beside votes of kind 1 and 2
_M = TypeVar("_M", bound=Message)

Call: TypeAlias = Callable[[str, bytes], Iterable[bytes]]


@dataclass(frozen=True)
class Difference:
    """What two peers' heads tell: by member, from which segment on one lacks what the other holds."""

    lacking: Mapping[int, tuple[int, int]]
    lacked: Mapping[int, tuple[int, int]]
    contrary: Mapping[int, int]  # up to where the chains of a member, which differ, are both held


def summary(peer: Peer, probes: Iterable[pb.Head] = ()) -> pb.Heads:
    """What a peer holds, in short; the lock of the peer is held."""
    chains, closing = peer.chains, peer.closing
    heads = pb.Heads(run=peer.terms.run, epoch=peer.epoch, root=peer.root, roster=peer.newest_roster.serial)
    heads.heads.extend(pb.Head(peer=p, count=count, hash=link) for p, (count, link) in chains.heads().items())
    heads.forked.extend(pb.Head(peer=p, count=number) for p, number in chains.forked().items())
    heads.votes.extend(pb.Held(view=view, kind=_PROPOSAL) for view in sorted(closing.proposals))
    for (view, kind), held in sorted(closing.votes.items()):
        heads.votes.append(pb.Held(view=view, kind=kind, members=_bits(held)))
    view, enough = closing.valid()
    if enough is not None:
        heads.votes.append(pb.Held(view=view, kind=_ENOUGH))
    heads.digest = digest("holds", heads.SerializeToString(deterministic=True))
    heads.probes.extend(probes)
    return heads


def answer(peer: Peer, method: str, request: bytes) -> list[bytes]:
    """What a peer answers to another: one message, or the pieces of a stream.

    Raises:
        RefusedError: the request is not readable, or of another run; nothing changes.
    """
    if method not in _ANSWERS:
        raise RefusedError(Reason.NOT_ASKED, f"no method {method!r}; expected one of {', '.join(_ANSWERS)}")
    kind, handle = _ANSWERS[method]
    message = _parsed(kind, request)
    run = getattr(message, "run", b"")
    if run != peer.terms.run and (run or kind in _TOLD_OF):
        raise RefusedError(Reason.OTHER_RUN, f"run {run.hex()[:16]}, here is {peer.terms.run.hex()[:16]}")
    with peer.lock:
        return [reply.SerializeToString() for reply in handle(peer, message)]


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
        _level(peer, mine, theirs, call)
    with peer.lock:
        own = [head for head in theirs.heads if head.peer == peer.number]
        if peer.epoch == mine.epoch and all(peer.chains.link(head.peer, head.count) == head.hash for head in own):
            peer.heard_from(other)


def _catch_up(peer: Peer, mine: pb.Heads, lean: bool, call: Call) -> None:
    """Go on from the other's last closed epoch; its state is fetched only where it cannot be made from what is held."""
    request = pb.SnapshotRequest(run=mine.run, after=mine.epoch - 1, lean=lean)
    pieces = _bounded(call("Snapshot", request.SerializeToString()), LONGEST_BESIDE + peer.ledger.most_bytes)
    try:
        peer.adopt(b"".join(_parsed(pb.Piece, piece).data for piece in pieces))
    except PayloadError as error:
        if not lean or error.defect != Defect.MISSING_PART:
            raise
        _catch_up(peer, mine, False, call)


def _level(peer: Peer, mine: pb.Heads, theirs: pb.Heads, call: Call) -> None:
    """Find what differs, take what is lacking here, give what is lacking there."""
    found = _differences(peer, mine, theirs)
    wanted = pb.Wanted(run=mine.run, epoch=mine.epoch, votes=mine.votes, roster=theirs.roster > mine.roster)
    wanted.ranges.extend(pb.Range(peer=p, first=first, last=last) for p, (first, last) in found.lacking.items())
    for p, (count, differing) in _first_differences(peer, found.contrary, call).items():
        wanted.ranges.append(pb.Range(peer=p, first=differing, last=count))
    known = {head.peer: head.count for head in mine.forked}
    wanted.forked.extend(head.peer for head in theirs.forked if head.count < known.get(head.peer, 1 << 32))
    if wanted.ranges or wanted.forked or wanted.roster or mine.votes != theirs.votes:
        refused = _fetch(peer, wanted, call)
        # A longer chain may differ already in what both hold, which shows only when its next segment does not fit.
        contrary = {p: first - 1 for p, (first, _) in found.lacking.items() if p in refused and first > 1}
        if contrary:
            again = pb.Wanted(run=mine.run, epoch=mine.epoch, votes=theirs.votes)
            for p, (_, differing) in _first_differences(peer, contrary, call).items():
                again.ranges.append(pb.Range(peer=p, first=differing, last=differing))
            _fetch(peer, again, call)
    _give(peer, mine.epoch, found, theirs, call)


def _differences(peer: Peer, mine: pb.Heads, theirs: pb.Heads) -> Difference:
    here = {head.peer: (head.count, head.hash) for head in mine.heads}
    there = {head.peer: (head.count, head.hash) for head in theirs.heads}
    forked = {head.peer: head.count for head in mine.forked}
    lacking, lacked, contrary = {}, {}, {}
    with peer.lock:
        chains = peer.chains
        for member in sorted((here.keys() | there.keys()) & chains.keys.keys()):
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
        batch = _parsed(pb.Batch, reply)
        peer.take(batch)
        came |= {segment.peer for segment in batch.segments}
    with peer.lock:
        return {p for p in came & before.keys() if chains.count(p) == before[p]}


def _give(peer: Peer, epoch: int, found: Difference, theirs: pb.Heads, call: Call) -> None:
    with peer.lock:
        if peer.epoch != epoch:
            return
        wanted = pb.Wanted(run=peer.terms.run, epoch=epoch, votes=theirs.votes)
        wanted.roster = theirs.roster < peer.newest_roster.serial
        wanted.ranges.extend(pb.Range(peer=p, first=first, last=last) for p, (first, last) in found.lacked.items())
        batches, forks = list(_batches(peer, wanted)), list(peer.chains.forks.items())
    for batch in batches:
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


# What is answered


def _on_heads(peer: Peer, asked: pb.Heads) -> Iterator[Message]:
    probes = []
    if asked.epoch == peer.epoch:
        for probe in asked.probes[:_MOST_RANGES]:
            link = peer.chains.link(probe.peer, probe.count)
            probes.append(pb.Head(peer=probe.peer, count=probe.count, hash=link or b""))
    mine = summary(peer, probes)
    if probes or mine.digest == asked.digest or mine.epoch != asked.epoch:
        for field in ("heads", "votes", "forked"):
            mine.ClearField(field)
    yield mine


def _on_segments(peer: Peer, wanted: pb.Wanted) -> Iterator[Message]:
    if wanted.epoch == peer.epoch:
        yield from _batches(peer, wanted)


def _batches(peer: Peer, wanted: pb.Wanted) -> Iterator[pb.Batch]:
    """What is wanted, as far as it is held, in pieces."""
    batch = pb.Batch(epoch=peer.epoch)
    if wanted.roster:
        batch.roster.CopyFrom(peer.newest_roster.to_proto())
    size = batch.ByteSize() if wanted.roster else 0
    for item in _items(peer, wanted):
        getattr(batch, _FIELDS[type(item)]).append(item)
        size += item.ByteSize() + 4
        if size > _PIECE:
            yield batch
            batch, size = pb.Batch(epoch=peer.epoch), 0
    if size:
        yield batch


def _items(peer: Peer, wanted: pb.Wanted) -> Iterator[Message]:
    """Proofs, what was said about closing, and segments: of each member one range, so that an answer is bounded."""
    chains = peer.chains
    yield from (chains.forks[p].to_proto() for p in sorted(set(wanted.forked) & chains.forks.keys()))
    for word in dict.fromkeys(_words(peer, wanted.votes)):
        yield word.to_proto()
    for p, span in {span.peer: span for span in wanted.ranges[:_MOST_RANGES]}.items():
        for segment in chains.segments(p, span.first, span.last):
            yield segment.to_proto()


def _words(peer: Peer, votes: Iterable[pb.Held]) -> Iterator[Vote | Proposal]:
    """What was said about closing the epoch that somebody who holds some votes lacks."""
    closing, held = peer.closing, {(said.view, said.kind): said.members for said in votes}
    yield from closing.evidence(max((view for view, kind in held if kind == _ENOUGH), default=-1))
    for (view, kind), cast in sorted(closing.votes.items()):
        known = held.get((view, kind), b"")
        yield from (vote for p, vote in sorted(cast.items()) if not _has(known, p))
    yield from (proposal for view, proposal in sorted(closing.proposals.items()) if (view, _PROPOSAL) not in held)


def _on_push(peer: Peer, batch: pb.Batch) -> Iterator[Message]:
    taken = peer.take(batch)
    yield pb.Taken(epoch=peer.epoch, taken=taken)


def _on_proof(peer: Peer, fork: pb.Fork) -> Iterator[Message]:
    taken = peer.take(pb.Batch(forks=[fork]))
    yield pb.Taken(epoch=peer.epoch, taken=taken)


def _on_snapshot(peer: Peer, asked: pb.SnapshotRequest) -> Iterator[Message]:
    data = peer.snapshot() or b""
    if asked.lean and data:
        data = without_state(data)
    if peer.epoch - 1 > asked.after:
        for begin in range(0, len(data), _PIECE):
            yield pb.Piece(data=data[begin : begin + _PIECE])


_ANSWERS: dict[str, tuple[type[Any], Callable[[Peer, Any], Iterator[Message]]]] = {
    "Heads": (pb.Heads, _on_heads),
    "Segments": (pb.Wanted, _on_segments),
    "Push": (pb.Batch, _on_push),
    "Proof": (pb.Fork, _on_proof),
    "Snapshot": (pb.SnapshotRequest, _on_snapshot),
}


_TOLD_OF = (pb.Heads, pb.Wanted, pb.SnapshotRequest)  # requests that say of which run they are

_FIELDS = {pb.Fork: "forks", pb.Vote: "votes", pb.Proposal: "proposals", pb.Segment: "segments"}


def _bits(members: Iterable[int]) -> bytes:
    numbers = list(members)
    bits = bytearray(max(numbers, default=0) // 8 + 1)
    for number in numbers:
        bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def _has(bits: bytes, member: int) -> bool:
    return member // 8 < len(bits) and bool(bits[member // 8] >> member % 8 & 1)


def _parsed(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RefusedError(Reason.BAD_PAYLOAD, f"not a {kind.__name__}: {error}") from None


def _one(kind: type[_M], replies: Iterable[bytes]) -> _M:
    return _parsed(kind, b"".join(_bounded(replies, LONGEST_BESIDE)))


def _bounded(replies: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Replies, of which nobody sends more than was asked for."""
    left = most
    for reply in replies:
        left -= len(reply)
        if left < 0:
            raise RefusedError(Reason.BAD_PAYLOAD, f"an answer of more than {most:,} bytes")
        yield reply
