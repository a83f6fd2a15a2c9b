"""Gossip: the mean of all stays, the distance to it falls, and what is not right moves nothing."""

import numpy as np
import pytest
import torch

from fedpeft.codecs import Identity, Rotated, Ternary, TopK, Uniform
from fedpeft.errors import PayloadError
from fedpeft.peers.gossip import Circle, Manner, distance, metropolis, pairs
from fedpeft.runtime.peer.topology import neighbours
from fedpeft.runtime.simulated.gossip import Gossip
from fedpeft.strategies import CentredClip, Fisher, Krum, Mean, Median
from tests.peers.learning import SPACE, point

SCATTERED = {peer: point(peer) for peer in range(1, 9)}
CENTRE = torch.stack(list(SCATTERED.values())).mean(dim=0)


def near(topology: str, peers: int = 8) -> dict[int, list[int]]:
    return {i + 1: [j + 1 for j in others] for i, others in enumerate(neighbours(topology, peers))}


def gossip(topology: str, codec, gamma: float = 1.0, in_pairs: bool = False, **manner) -> Gossip:
    made = Gossip(
        Manner(SPACE, codec, gamma=gamma, **manner), near(topology), torch.zeros(SPACE.numel), in_pairs=in_pairs
    )
    made.adapters = dict(SCATTERED)
    return made


def test_on_a_complete_graph_all_have_the_mean_after_one_round():
    one = gossip("complete", Identity())
    one.step()
    for adapter in one.adapters.values():
        torch.testing.assert_close(adapter, CENTRE, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("codec", [Identity(), Ternary(0.3), TopK(0.1), Uniform(bits=2), Rotated(1)], ids=repr)
@pytest.mark.parametrize("topology", ["ring", "random", "complete"])
def test_the_mean_of_all_stays(topology, codec, in_pairs):
    one = gossip(topology, codec, 0.3, in_pairs)
    for _ in range(5):
        one.step()
    assert one.distance() > 0
    torch.testing.assert_close(one.mean(), CENTRE, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topology", ["ring", "random"])
def test_the_distance_falls_as_the_weights_say(topology):
    one, weights = gossip(topology, Identity()), metropolis(near(topology))
    matrix = np.array([[weights[i].get(j, 0.0) for j in SCATTERED] for i in SCATTERED])
    assert np.allclose(matrix, matrix.T)
    second = np.sort(np.abs(np.linalg.eigvalsh(matrix)))[-2]
    before = one.distance()
    for _ in range(12):
        one.step()
        assert one.distance() <= second * before * 1.001
        before = one.distance()


@pytest.mark.parametrize(("codec", "gamma"), [(Ternary(0.3), 0.4), (TopK(0.1), 0.2), (Uniform(bits=2), 0.5)])
@pytest.mark.parametrize("in_pairs", [False, True])
def test_compressed_gossip_comes_together_too(codec, gamma, in_pairs):
    one = gossip("ring", codec, gamma, in_pairs)
    begun = one.distance()
    found = [one.distance() for _ in range(60) if one.step() is None]
    assert found[29] < 0.5 * begun
    assert found[-1] < 0.5 * found[29]
    torch.testing.assert_close(one.mean(), CENTRE, rtol=1e-3, atol=1e-4)


def test_two_who_met_have_their_mean():
    one = gossip("complete", Identity(), in_pairs=True)
    met = pairs(one.near, 0, 1)
    assert len(met) == 4
    one.step()
    for a, b in met:
        torch.testing.assert_close(one.adapters[a], (SCATTERED[a] + SCATTERED[b]) / 2, rtol=1e-5, atol=1e-6)


def test_pairs_differ_from_round_to_round_and_are_neighbours():
    ring = near("ring", 9)
    drawn = [pairs(ring, 5, number) for number in range(1, 30)]
    assert len({tuple(met) for met in drawn}) > 5
    for met in drawn:
        assert all(b in ring[a] for a, b in met)
        assert len({peer for pair in met for peer in pair}) == 2 * len(met)


def test_everybody_holds_the_same_copy_of_everybody():
    one = gossip("random", Ternary(0.3), 0.3)
    for _ in range(4):
        one.step()
    for (peer, _), circle in one._circles.items():
        for other in circle.copies:
            assert torch.equal(circle.copies[other], one._circles[other, 0].copies[other]), (peer, other)


def test_peers_that_train_come_near_the_best_for_all():
    one = gossip("ring", Ternary(0.5), 0.5)
    one.adapters = {peer: torch.zeros(SPACE.numel) for peer in SCATTERED}

    def train(adapter, peer, number):
        rate = 0.2 / (1 + number / 10)
        return adapter + rate * (SCATTERED[peer] - adapter)

    for _ in range(80):
        one.step(train)
    assert torch.linalg.vector_norm(one.mean() - CENTRE) < 0.05 * torch.linalg.vector_norm(CENTRE)
    assert one.distance() < 0.2 * distance(list(SCATTERED.values()))


@pytest.mark.parametrize("strategy", [Median(), CentredClip(1.0)], ids=repr)
def test_a_liar_moves_a_robust_merge_less(strategy):
    def pulled(strategy):
        circle = Circle(Manner(SPACE, Identity(), strategy), 1, dict.fromkeys(range(1, 7), 1 / 6), CENTRE)
        liar = Circle(Manner(SPACE, Identity()), 6, {6: 1.0}, CENTRE)
        circle.hear(6, 1, liar.say(CENTRE + 100.0, 1))
        return float(torch.linalg.vector_norm(circle.pull(1)))

    assert pulled(strategy) < 0.1 * pulled(Mean())


def test_what_is_not_right_moves_nothing():
    manner = Manner(SPACE, Ternary(0.3))
    speaker, listener = (Circle(manner, number, {1: 0.5, 2: 0.5}, CENTRE) for number in (1, 2))
    said = speaker.say(point(1), 1)
    for payload, number in ((said[:-1], 1), (said, 2), (b"", 1)):
        with pytest.raises(PayloadError):
            listener.hear(1, number, payload)
    far = Circle(Manner(SPACE, Ternary(0.3)), 1, {1: 0.5, 2: 0.5}, CENTRE)
    with pytest.raises(PayloadError, match="norm"):
        Circle(Manner(SPACE, Ternary(0.3), largest_norm=0.1), 2, {1: 0.5, 2: 0.5}, CENTRE).hear(
            1, 1, far.say(point(1), 1)
        )
    assert torch.equal(listener.copies[1], CENTRE)
    listener.hear(1, 1, said)
    listener.hear(1, 1, said)
    assert torch.equal(listener.copies[1], speaker.copies[1])


@pytest.mark.parametrize("how", [{"gamma": 0.0}, {"gamma": 1.5}, {"strategy": Fisher()}])
def test_what_cannot_gossip_is_refused(how):
    with pytest.raises(ValueError, match="gamma|differences"):
        Manner(SPACE, Identity(), **how)


def test_bytes_are_those_of_what_was_said():
    one = gossip("ring", Ternary(0.3), 0.3, strategy=Krum(0))
    one.step()
    assert sum(one.sent.values()) == sum(one.received.values())
    assert all(count > 0 for count in one.sent.values())
