"""What of a batch that somebody sent is new and right: every signature is checked here, and nothing else is trusted."""

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import PayloadError, RefusedError
from fedpeft.keys.signing import verified
from fedpeft.peers.chains import Taking
from fedpeft.peers.cut import Proposal, Vote
from fedpeft.peers.epoch import Epoch
from fedpeft.peers.segment import Fork, Segment


def take(epoch: Epoch, run: bytes, batch: pb.Batch) -> pb.Batch:
    """Add to an epoch what is new and right of a batch; that, as it is to be kept. What is wrong is left out."""
    kept = pb.Batch()
    for message in batch.segments:
        _take_segment(epoch, Segment.from_proto(message), kept)
    for proof in batch.forks:
        _take_fork(epoch, Fork.from_proto(proof), kept)
    for vote in batch.votes:
        _take_vote(epoch, run, vote, kept)
    for proposal in batch.proposals:
        _take_proposal(epoch, run, proposal, kept)
    return kept


def put(batch: pb.Batch, word: Vote | Proposal) -> None:
    """Add what a member said to a batch."""
    if isinstance(word, Vote):
        batch.votes.append(word.to_proto())
    else:
        batch.proposals.append(word.to_proto())


def _take_segment(epoch: Epoch, segment: Segment, kept: pb.Batch) -> None:
    try:
        taking = epoch.chains.take(segment)
    except RefusedError:
        return
    if taking == Taking.FORKED:
        kept.forks.append(epoch.chains.forks[segment.peer].to_proto())
    elif taking == Taking.NEW:
        kept.segments.append(segment.to_proto())


def _take_fork(epoch: Epoch, fork: Fork, kept: pb.Batch) -> None:
    try:
        if epoch.chains.bar(fork):
            kept.forks.append(fork.to_proto())
    except RefusedError:
        return


def _take_vote(epoch: Epoch, run: bytes, message: pb.Vote, kept: pb.Batch) -> None:
    try:
        vote = Vote.from_proto(message)
    except PayloadError:
        return
    if not epoch.closing.wants(vote):
        return
    if verified(epoch.roster.by_number[vote.peer].key, vote.hash(run), vote.signature):
        epoch.closing.add(vote)
        put(kept, vote)


def _take_proposal(epoch: Epoch, run: bytes, message: pb.Proposal, kept: pb.Batch) -> None:
    try:
        proposal = Proposal.from_proto(message, run)
    except PayloadError:
        return
    if not epoch.closing.wants(proposal) or not epoch.fits(proposal.cut):
        return
    proposer = epoch.roster.by_number[epoch.closing.proposer(proposal.view)]
    if verified(proposer.key, proposal.hash(), proposal.signature):
        epoch.closing.add(proposal)
        put(kept, proposal)
