"""Counters and their mixing: tables that are what they say, and chances that learn."""

import numpy as np
import pytest

from fedpeft.kernels import logistic


def test_squash_is_the_logistic_function() -> None:
    odds = np.arange(1 - logistic.SIDE, logistic.SIDE)
    expected = 65536 / (1 + np.exp(-odds / 256))
    assert np.abs(logistic.SQUASH[1:] - expected).max() <= 0.5001
    assert np.all(logistic.SQUASH[1:] + logistic.SQUASH[:0:-1] == 65536)
    assert [logistic.squash(x) for x in (-(10**9), -2048, 0, 256, 10**9)] == [22, 22, 32768, 47911, 65514]


def test_stretch_undoes_squash() -> None:
    for odds in range(-1500, 1501, 7):
        one = logistic.counters(1, logistic.SQUASH[odds + logistic.SIDE] / 65536)
        chance = logistic.SQUASH[odds + logistic.SIDE]
        step = 65536 * 16 * 256 / (chance * (65536 - int(chance)))  # of the odds, from one of 4096 chances to the next
        assert abs(logistic.stretch(one, 0) - odds) <= 1 + step / 2


@pytest.mark.parametrize("share", [0.0, 0.003, 0.1, 0.5, 0.97, 1.0])
def test_a_counter_learns_a_share_and_stays_a_chance(share: float) -> None:
    one = logistic.counters(2, 0.3)
    for bit in np.random.default_rng(0).random(5000) < share:
        logistic.count(one, 1, int(bit))
    assert 0 <= one.chance[1] < 1 << logistic.FINE_BITS
    assert abs(one.chance[1] / (1 << logistic.FINE_BITS) - share) < 0.03
    assert one.seen.tolist() == [0, logistic.LIMIT]
    assert one.chance[0] == round(0.3 * (1 << logistic.FINE_BITS))


def test_a_counter_that_begins_sure_learns_slowly() -> None:
    unsure, sure = logistic.counters(1, 0.1), logistic.counters(1, 0.1, seen=60)
    for one in (unsure, sure):
        logistic.count(one, 0, 1)
    assert unsure.chance[0] > 0.6 * (1 << logistic.FINE_BITS) and sure.chance[0] < 0.12 * (1 << logistic.FINE_BITS)


def test_a_mixer_begins_with_the_mean_and_learns_whom_to_trust() -> None:
    one = logistic.mixer(2)
    assert abs(logistic.mixed(one, 1, 300, 600, -300) - 200) <= 1
    rng = np.random.default_rng(0)
    for _ in range(4000):
        bit = int(rng.random() < 0.5)
        a, b, c = (2 * bit - 1) * 400, int(rng.integers(-400, 401)), int(rng.integers(-400, 401))
        error = (bit << 16) - logistic.squash(logistic.mixed(one, 1, a, b, c))
        logistic.learn(one, 1, error, a, b, c)
    trusted, *others = one.weight[3:] / logistic.ONE
    assert trusted > 1.5 and max(map(abs, others)) < 0.2
    assert np.all(one.weight[:3] == logistic.ONE // 3) and one.trained.tolist() == [0, 4000]


def test_rates_fall() -> None:
    assert np.all(np.diff(logistic.RATE) <= 0) and logistic.RATE[0] == 1310 and logistic.RATE[-1] == 131
    assert np.all(np.diff(logistic.PACE) <= 0) and logistic.PACE[-1] == 63 and logistic.PACE[0] == 40960
