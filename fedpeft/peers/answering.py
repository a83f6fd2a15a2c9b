"""What a peer answers to another, piece by piece: it is never locked for longer than one piece takes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Reason, RefusedError
from fedpeft.keys.signing import digest
from fedpeft.peers.cut import Proposal, Vote
from fedpeft.peers.peer import Peer
from fedpeft.peers.snapshot import without_state

_PIECE = 1 << 16  # bytes
_MOST_ITEMS = 64  # of a batch that are looked at before others have their turn
_MOST_RANGES = 4096
_PROPOSAL, _ENOUGH = 0, 3  # kinds of what is held in a view, beside votes of kind 1 and 2
_M = TypeVar("_M", bound=Message)


def answer(peer: Peer, method: str, request: bytes) -> Iterator[bytes]:
    """What a peer answers to another: one message, or the pieces of a stream.

    Nothing is done but as far as the answer is read.

    Raises:
        RefusedError: the request is not readable, or of another run; nothing changes.
    """
    if method not in _ANSWERS:
        raise RefusedError(Reason.NOT_ASKED, f"no method {method!r}; expected one of {', '.join(_ANSWERS)}")
    kind, handle = _ANSWERS[method]
    message = parsed(kind, request)
    run = getattr(message, "run", b"")
    if run != peer.terms.run and (run or kind in _TOLD_OF):
        raise RefusedError(Reason.OTHER_RUN, f"run {run.hex()[:16]}, here is {peer.terms.run.hex()[:16]}")
    for reply in handle(peer, message):
        yield reply.SerializeToString()


def parsed(kind: type[_M], data: bytes) -> _M:
    """A message.

    Raises:
        RefusedError: the bytes are none of its kind.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RefusedError(Reason.BAD_PAYLOAD, f"not a {kind.__name__}: {error}") from None


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


def batches(peer: Peer, wanted: pb.Wanted) -> Iterator[pb.Batch]:
    """What is wanted of the open epoch, as far as it is held, in pieces; nothing where another epoch is meant."""
    made = _batches(peer, wanted)
    while True:
        with peer.lock:
            batch = next(made, None)
        if batch is None:
            return
        yield batch


def pieces(batch: pb.Batch) -> Iterator[pb.Batch]:
    """What came at once, in parts after each of which others have their turn."""
    part, size, count = pb.Batch(epoch=batch.epoch), 0, 0
    if batch.HasField("roster"):
        part.roster.CopyFrom(batch.roster)
    for field in ("segments", "forks", "votes", "proposals"):
        for item in getattr(batch, field):
            more = item.ByteSize()
            if count == _MOST_ITEMS or (count and size + more > _PIECE):
                yield part
                part, size, count = pb.Batch(epoch=batch.epoch), 0, 0
            getattr(part, field).append(item)
            size, count = size + more, count + 1
    yield part


def _batches(peer: Peer, wanted: pb.Wanted) -> Iterator[pb.Batch]:
    """The pieces; the lock of the peer is held while one is made."""
    if wanted.epoch != peer.epoch:
        return
    batch, size = pb.Batch(epoch=wanted.epoch), 0
    if wanted.roster:
        batch.roster.CopyFrom(peer.newest_roster.to_proto())
        size = batch.ByteSize()
    for item in _items(peer, wanted):
        getattr(batch, _FIELDS[type(item)]).append(item)
        size += item.ByteSize() + 4
        if size > _PIECE:
            yield batch
            batch, size = pb.Batch(epoch=wanted.epoch), 0
    if size:
        yield batch


def _items(peer: Peer, wanted: pb.Wanted) -> Iterator[Message]:
    """Proofs, what was said about closing, and segments: of each member one range, so that an answer is bounded."""
    chains = peer.chains
    yield from [chains.forks[p].to_proto() for p in sorted(set(wanted.forked) & chains.forks.keys())]
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


def _on_heads(peer: Peer, asked: pb.Heads) -> Iterator[Message]:
    probes = []
    with peer.lock:
        if asked.epoch == peer.epoch:
            for probe in asked.probes[:_MOST_RANGES]:
                link = peer.chains.link(probe.peer, probe.count)
                probes.append(pb.Head(peer=probe.peer, count=probe.count, hash=link or b""))
        mine = summary(peer, probes)
    if probes or mine.digest == asked.digest or mine.epoch != asked.epoch:
        for field in ("heads", "votes", "forked"):
            mine.ClearField(field)
    yield mine


def _on_push(peer: Peer, batch: pb.Batch) -> Iterator[Message]:
    """Take what was pushed, up to the first part that brings nothing new: what was missed comes with an exchange."""
    taken = 0
    for part in pieces(batch):
        new = peer.take(part)
        taken += new
        if not new:
            break
    yield pb.Taken(epoch=peer.epoch, taken=taken)


def _on_proof(peer: Peer, fork: pb.Fork) -> Iterator[Message]:
    taken = peer.take(pb.Batch(forks=[fork]))
    yield pb.Taken(epoch=peer.epoch, taken=taken)


def _on_snapshot(peer: Peer, asked: pb.SnapshotRequest) -> Iterator[Message]:
    data = (peer.epoch - 1 > asked.after and peer.snapshot()) or b""
    if asked.lean and data:
        data = without_state(data)
    for begin in range(0, len(data), _PIECE):
        yield pb.Piece(data=data[begin : begin + _PIECE])


_ANSWERS: dict[str, tuple[type[Any], Callable[[Peer, Any], Iterator[Message]]]] = {
    "Heads": (pb.Heads, _on_heads),
    "Segments": (pb.Wanted, batches),
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
