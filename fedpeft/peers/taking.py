"""What of a batch that somebody sent is new and right: every signature is checked here, and nothing else is trusted.

Nobody honest passes on a vote, a proposal or a proof that it has not checked: at the first that is wrong, the rest of
the batch is left unread, so that a liar's call costs little. A segment may fail to fit because its member forked; of
that member, what follows is left unread.
"""

from itertools import chain

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import PayloadError, RefusedError
from fedpeft.keys.signing import verified
from fedpeft.peers.chains import Taking
from fedpeft.peers.cut import Proposal, Vote
from fedpeft.peers.epoch import Epoch
from fedpeft.peers.segment import Fork, Segment


def take(epoch: Epoch, run: bytes, batch: pb.Batch) -> pb.Batch:
    """Add to an epoch what is new and right of a batch; that, as it is to be kept. What is wrong is left out."""
    kept, unfit = pb.Batch(), set[int]()
    for message in batch.segments:
        if message.peer not in unfit and not _take_segment(epoch, Segment.from_proto(message), kept):
            unfit.add(message.peer)
    words = chain(
        (_take_fork(epoch, Fork.from_proto(proof), kept) for proof in batch.forks),
        (_take_vote(epoch, run, vote, kept) for vote in batch.votes if epoch.closes),
        (_take_proposal(epoch, run, proposal, kept) for proposal in batch.proposals if epoch.closes),
    )
    for right in words:
        if not right:
            break
    return kept


def put(batch: pb.Batch, word: Vote | Proposal) -> None:
    """Add what a member said to a batch."""
    if isinstance(word, Vote):
        batch.votes.append(word.to_proto())
    else:
        batch.proposals.append(word.to_proto())


def _take_segment(epoch: Epoch, segment: Segment, kept: pb.Batch) -> bool:
    try:
        taking = epoch.chains.take(segment)
    except RefusedError:
        return False
    if taking == Taking.FORKED:
        kept.forks.append(epoch.chains.forks[segment.peer].to_proto())
    elif taking == Taking.NEW:
        kept.segments.append(segment.to_proto())
    return True


def _take_fork(epoch: Epoch, fork: Fork, kept: pb.Batch) -> bool:
    try:
        if epoch.chains.bar(fork):
            kept.forks.append(fork.to_proto())
    except RefusedError:
        return False
    return True


def _take_vote(epoch: Epoch, run: bytes, message: pb.Vote, kept: pb.Batch) -> bool:
    try:
        vote = Vote.from_proto(message)
    except PayloadError:
        return False
    if not epoch.closing.wants(vote):
        return True
    return verified(epoch.roster.by_number[vote.peer].key, vote.hash(run), vote.signature) and _add(epoch, vote, kept)


def _take_proposal(epoch: Epoch, run: bytes, message: pb.Proposal, kept: pb.Batch) -> bool:
    try:
        proposal = Proposal.from_proto(message, run)
    except PayloadError:
        return False
    if not epoch.closing.wants(proposal) or not epoch.fits(proposal.cut):
        return True
    proposer = epoch.roster.by_number[epoch.closing.proposer(proposal.view)]
    return verified(proposer.key, proposal.hash(), proposal.signature) and _add(epoch, proposal, kept)


def _add(epoch: Epoch, word: Vote | Proposal, kept: pb.Batch) -> bool:
    epoch.closing.add(word)
    put(kept, word)
    return True
