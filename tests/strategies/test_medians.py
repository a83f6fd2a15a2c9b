"""Coordinate-wise median and trimmed mean, as numpy has them, and the blocks that they read."""

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Mean, Median, TrimmedMean, Update, columns
from tests.strategies.examples import SPACE, updates


def rows(cohort):
    return np.stack([u.delta.double().numpy() for u in cohort])


def trimmed(x, dropped):
    return np.sort(x, axis=0)[dropped : len(x) - dropped].mean(axis=0)


@pytest.mark.parametrize("clients", [1, 2, 3, 10, 128])
def test_median_is_numpys(clients):
    cohort = updates(clients)
    found = Median().merge(cohort, Context(SPACE))
    assert np.allclose(found.numpy(), np.median(rows(cohort), axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("fraction", "clients", "dropped"),
    [
        (0.0, 7, 0),
        (0.2, 10, 2),
        (0.29, 100, 29),
        (0.3, 10, 3),
        (0.3, 9, 2),
        (0.49, 1, 0),
        (0.49, 3, 1),
        (0.49, 128, 62),
    ],
)
def test_trimmed_mean_drops_the_floor_at_either_end(fraction, clients, dropped):
    cohort = updates(clients)
    found = TrimmedMean(fraction).merge(cohort, Context(SPACE))
    assert np.allclose(found.numpy(), trimmed(rows(cohort), dropped), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rule", "hostile"), [(Median(), 4), (TrimmedMean(0.4), 4), (TrimmedMean(0.1), 1)])
@pytest.mark.parametrize("size", [1e3, -1e30])
def test_hostile_updates_do_not_leave_the_range_of_the_honest(rule, hostile, size):
    cohort = updates(10)
    honest = torch.stack([u.delta for u in cohort[hostile:]])
    cohort[:hostile] = [Update(torch.full((SPACE.numel,), size), 1e9)] * hostile
    found = rule.merge(cohort, Context(SPACE))
    assert (found >= honest.amin(0)).all() and (found <= honest.amax(0)).all()
    assert Mean().merge(cohort, Context(SPACE)).abs().min() > 100 * found.abs().max()


@pytest.mark.parametrize("kind", ["planes", "dense"])
def test_blocks_of_any_length_are_the_whole(kind, monkeypatch):
    """Two slots whose border lies within a word, and an end within one too."""
    space = Space((Slot("a", (7, 30), "lora_A"), Slot("b", (0,), "head"), Slot("c", (111,), "head")))
    codec = Ternary(density=0.3)
    parts = [codec.encode(u.delta, space, Sender()) for u in updates(5, space=space)]
    read = codec.planes if kind == "planes" else codec.decode
    cohort = [Update(read(p, space, Sender())) for p in parts]
    whole = torch.stack([u.delta for u in cohort])
    for values in (1, 5 * 64, 5 * 128, 5 * 200, 1 << 20):
        monkeypatch.setattr(columns, "_VALUES", values)
        blocks = list(columns.columns(cohort, Context(space)))
        assert torch.equal(torch.cat([block for _, block in blocks], dim=1), whole)
        assert [where.start for where, _ in blocks] == [0, *(where.stop for where, _ in blocks[:-1])]
        assert len(blocks) == -(-space.numel // max(64, values // 5 // 64 * 64))


def test_each_update_is_decoded_once():
    class Counted(list):
        reads = 0

        def __iter__(self):
            for i in range(len(self)):
                Counted.reads += 1
                yield self[i]

    Median().merge(Counted(updates(6)), Context(SPACE))
    assert Counted.reads == 6


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 2.0, float("nan")])
def test_wrong_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must lie in \[0, 0.5\), got {fraction}"):
        TrimmedMean(fraction)
