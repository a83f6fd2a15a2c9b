from pathlib import Path

from tests.runtime.peer_world import World

ALL = ("a", "b", "c", "d")


def test_four_peers_end_every_epoch_with_one_state(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.admit(*ALL)
        for name in ALL:
            world.start(name)
        world.until(lambda: world.closed(3, *ALL))
        assert all(world.states[name] == world.states["a"] for name in ALL)
        assert world.states["a"].keys() == {1, 2, 3}
        assert world.nodes["a"].waits_for() == "the run is over"


def test_who_comes_late_and_who_only_dials_end_with_the_same_state(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.admit(*ALL)
        for name in ALL[:3]:
            world.start(name)
        world.until(lambda: world.closed(1, *ALL[:3]))
        late = world.start("d", dials=True)
        assert late.address == ""
        world.until(lambda: world.closed(3, *ALL))
        assert len({world.states[name][3] for name in ALL}) == 1


def test_who_is_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    with World(tmp_path, epochs=4) as world:
        world.admit(*ALL)
        for name in ALL:
            world.start(name)
        world.until(lambda: world.closed(1, *ALL))
        world.stop("b")
        world.until(lambda: world.closed(2, "a", "c", "d"))
        world.start("b")
        world.until(lambda: world.closed(4, *ALL))
        assert len({world.states[name][4] for name in ALL}) == 1
        assert not [text for text in world.said if "signed two" in text]


def test_a_new_member_is_let_in_by_a_roster_that_one_peer_was_given(tmp_path: Path) -> None:
    with World(tmp_path, epochs=3) as world:
        world.admit(*ALL[:3])
        for name in ALL[:3]:
            world.start(name)
        world.until(lambda: world.closed(1, *ALL[:3]))
        world.nodes["a"].peer.take(world.batch(world.admit("d")))
        world.start("d")
        world.until(lambda: world.closed(3, *ALL))
        assert len({world.states[name][3] for name in ALL}) == 1
        assert [m.name for m in world.nodes["b"].peer.roster.members] == list(ALL)


def test_addresses_spread_by_word_of_mouth(tmp_path: Path) -> None:
    with World(tmp_path, epochs=2) as world:
        world.admit(*ALL)
        first = world.start("a")
        for name in ALL[1:]:
            world.start(name, a=first.address)
        world.until(lambda: world.closed(2, *ALL))
        met = [node.contacts.seen(n) for node in world.nodes.values() for n in range(1, 5) if n != node.peer.number]
        world.until(lambda: all(contact.worked for contact in met))
