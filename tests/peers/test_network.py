"""The simulated network, and who is whose neighbour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft._proto import peer_pb2 as pb
from fedpeft.runtime.peer.topology import neighbours
from fedpeft.runtime.simulated.network import Network, UnreachableError, Weather
from tests.peers.swarm import RUN, Swarm

ASKED = pb.Heads(run=RUN, epoch=1).SerializeToString()


def outcomes(weather: Weather, seed: int, calls: int = 200) -> list[bytes | None]:
    swarm = Swarm(3, seed=seed)
    swarm.network.weather = weather
    ask, got = swarm.network.call(1, 2), []
    for _ in range(calls):
        try:
            got.append(b"".join(ask("Heads", ASKED)))
        except UnreachableError:
            got.append(None)
        except Exception:
            got.append(b"refused")
    return got


def test_in_good_weather_each_call_is_answered() -> None:
    swarm = Swarm(3)
    got = outcomes(Weather(), 0, 20)
    assert len(set(got)) == 1
    assert pb.Heads.FromString(got[0] or b"").root == swarm.peers[1].root


def test_a_seed_makes_the_weather() -> None:
    weather = Weather(loss=0.3, repeat=0.3, damage=0.3)
    assert outcomes(weather, 1) == outcomes(weather, 1)
    assert outcomes(weather, 1) != outcomes(weather, 2)


def test_as_much_is_lost_as_is_said() -> None:
    lost = outcomes(Weather(loss=0.3), 0, 600).count(None) / 600
    assert 0.51 - 0.1 < lost < 0.51 + 0.1, "request or answer: 1 - 0.7 * 0.7"


def test_damage_turns_one_bit() -> None:
    network = Network({}, weather=Weather(damage=1.0))
    for size in (1, 7, 100):
        data = bytes(size)
        assert sum(byte.bit_count() for byte in network._weathered(data)) == 1
    assert network._weathered(b"") == b""


def test_islands_are_apart_until_they_are_healed() -> None:
    swarm = Swarm(5)
    swarm.network.split([[1, 2], [3, 4]])
    reached = {(i, j) for i in swarm.peers for j in swarm.peers if i != j and swarm.exchange(i, j)}
    assert reached == {(1, 2), (2, 1), (3, 4), (4, 3)}
    swarm.network.heal()
    assert swarm.exchange(5, 1)
    with pytest.raises(UnreachableError, match="peer 9 was not reached"):
        swarm.network.call(1, 9)("Heads", ASKED)


def test_bytes_are_counted_at_both_ends() -> None:
    swarm = Swarm(3)
    reply = b"".join(swarm.network.call(1, 2)("Heads", ASKED))
    assert swarm.network.sent == {1: len(ASKED), 2: len(reply)}
    assert swarm.network.received == {2: len(ASKED), 1: len(reply)}


def one_that_tells() -> tuple[Swarm, bytes]:
    """Three peers that have met, and the message by which the first tells of its segment."""
    swarm = Swarm(3)
    swarm.meet()
    segment = swarm.publish(1)
    assert segment is not None
    push = pb.Batch(run=RUN, epoch=1, segments=[segment.to_proto()]).SerializeToString()
    return swarm, push


def test_what_is_repeated_comes_again_after_others() -> None:
    swarm, push = one_that_tells()
    swarm.network.weather = Weather(repeat=1.0)
    ask = swarm.network.call(1, 2)
    ask("Push", push)
    waiting = len(swarm.network._late)
    for _ in range(50):
        ask("Heads", ASKED)
    assert waiting <= 1
    assert swarm.peers[2].chains.count(1) == 1


def test_what_is_delayed_is_carried_out_when_its_caller_has_given_up() -> None:
    swarm, push = one_that_tells()
    swarm.network.weather = Weather(delay=0.999)
    ask = swarm.network.call(1, 2)
    for message, method in ((push, "Push"), *[(ASKED, "Heads")] * 50):
        with pytest.raises(UnreachableError, match="did not answer in time"):
            ask(method, message)
    assert swarm.peers[2].chains.count(1) == 1


@given(st.sampled_from(["complete", "ring", "random"]), st.integers(1, 40), st.integers(0, 99), st.integers(0, 8))
def test_neighbours_are_mutual_and_connected(topology: str, peers: int, seed: int, degree: int) -> None:
    near = neighbours(topology, peers, seed, degree)  # type: ignore[arg-type]
    assert len(near) == peers
    reached, front = {0}, [0]
    while front:
        front = [j for i in front for j in near[i] if j not in reached]
        reached |= set(front)
    assert len(reached) == peers
    for i, own in enumerate(near):
        assert own == sorted(set(own) - {i})
        assert all(i in near[j] for j in own)


def test_topologies_have_the_edges_that_they_are_named_for() -> None:
    assert neighbours("complete", 4) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert neighbours("ring", 2) == [[1], [0]]
    assert neighbours("ring", 1) == [[]]
    near = neighbours("random", 200, seed=1, degree=6)
    assert 5.0 < sum(map(len, near)) / 200 <= 6.0
    assert near == neighbours("random", 200, seed=1, degree=6) != neighbours("random", 200, seed=2, degree=6)
    with pytest.raises(ValueError, match="got 'star'"):
        neighbours("star", 3)  # type: ignore[arg-type]
