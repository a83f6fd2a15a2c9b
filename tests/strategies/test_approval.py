"""Clients elect the coordinates that stay, and with them the next round's public support."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import PublicSupport
from fedpeft.strategies import Approval, Context, Mean, Update
from tests.strategies.examples import SPACE, updates

BOUNDS = list(pairwise(SPACE.bounds))


def by_hand(cohort, keep):
    """Votes and seats, one coordinate after the other."""
    merged, won = Mean().merge(cohort, Context(SPACE)), []
    for begin, end in BOUNDS:
        seats = min(end - begin, max(1, round(keep * (end - begin))))
        votes = np.zeros(end - begin)
        for update in cohort:
            sizes = update.delta[begin:end].abs().tolist()
            best = sorted(range(end - begin), key=lambda i: -sizes[i])[:seats]
            votes[[i for i in best if sizes[i]]] += 1
        size = merged[begin:end].abs().tolist()
        ranked = sorted(range(end - begin), key=lambda i: (-votes[i], -size[i], i))
        won += [begin + i for i in ranked[:seats] if votes[i]]
    out = torch.zeros_like(merged)
    out[won] = merged[won]
    return out


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["normal", "ternary", "integers"])
@pytest.mark.parametrize("clients", [1, 2, 9])
def test_the_most_approved_stay(clients, kind, keep):
    cohort = updates(clients, kind)
    assert torch.equal(Approval(Mean(), keep).merge(cohort, Context(SPACE)), by_hand(cohort, keep))


def test_a_large_update_has_one_vote_too():
    cohort = updates(9)
    shout = Update(torch.zeros(SPACE.numel), 1e9)
    for begin, end in BOUNDS:
        if end > begin:
            least = torch.stack([update.delta[begin:end].abs() for update in cohort]).sum(0).argmin()
            shout.delta[begin + least] = 1e20
    calm, bent = (Approval(Mean(), 0.3).merge(some, Context(SPACE)) != 0 for some in (cohort, [*cohort, shout]))
    assert (calm & bent).sum() >= calm.sum() - sum(end > begin for begin, end in BOUNDS)


@pytest.mark.parametrize("explore", [0.2, 0.5])
def test_who_is_elected_is_sent_in_the_next_round(explore):
    density = 0.5
    step = Approval(Mean(), density * (1 - explore)).merge(updates(9), Context(SPACE))
    codec = PublicSupport(density, elect="last", explore=explore)
    before = torch.randn(SPACE.numel, generator=torch.Generator().manual_seed(0)).mul_(1e-3)
    sender = Sender(round=2, client=1, before=before, start=before + step)
    sent = codec.decode(codec.encode(torch.ones(SPACE.numel), SPACE, sender), SPACE, sender) != 0
    for begin, end in BOUNDS:
        elected = step[begin:end] != 0
        seats = round(density * (end - begin))
        missed = int((elected & ~sent[begin:end]).sum())
        assert missed <= max(0, int(elected.sum()) - (seats - int(np.ceil(explore * seats)))), (begin, end)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_a_share(keep):
    with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\]"):
        Approval(Mean(), keep)
