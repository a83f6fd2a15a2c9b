"""Sign election by head."""

import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, SignElection, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE

ELECTIONS = [SignElection(elect, average) for elect in ("sum", "count") for average in ("agreeing", "all")]


def fold(strategy, cohort, space=SPACE):
    return strategy.merge(cohort, Context(space))


@pytest.mark.parametrize("strategy", ELECTIONS, ids=repr)
def test_a_tied_election_makes_no_step(strategy):
    x = torch.linspace(-2, 2, SPACE.numel)
    assert not fold(strategy, [Update(x, 3.0), Update(-x, 3.0)]).any()
    assert torch.equal(fold(strategy, [Update(x, 3.0), Update(-x, 3.0), Update(0 * x, 99.0)]), 0 * x)


def test_an_election_by_head():
    space = Space((Slot("a", (4,), "head"),))
    rows = [[4.0, 1.0, -1.0, 0.0], [-1.0, 1.0, -1.0, 0.0], [-1.0, -3.0, 0.0, 2.0]]
    cohort = [Update(torch.tensor(row)) for row in rows]
    merged = {s: fold(s, cohort, space).tolist() for s in ELECTIONS}
    assert merged[SignElection("sum", "agreeing")] == [4.0, -3.0, -1.0, 2.0]
    assert merged[SignElection("count", "agreeing")] == [-1.0, 1.0, -1.0, 2.0]
    assert merged[SignElection("sum", "all")] == pytest.approx([4 / 3, -1.0, -2 / 3, 2 / 3])
    assert merged[SignElection("count", "all")] == pytest.approx([-2 / 3, 2 / 3, -2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignElection("total"), "elect must be 'sum' or 'count', got 'total'"),
        (lambda: SignElection(average="mean"), "average must be 'agreeing' or 'all', got 'mean'"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
