"""Who may talk to whom."""

from collections.abc import Iterable
from typing import Literal

from fedpeft.random import Purpose, Stream

Topology = Literal["complete", "ring", "random"]


def neighbours(topology: Topology, peers: int, seed: int = 0, degree: int = 4) -> list[list[int]]:
    """The neighbours of each of n peers, from 0; always connected, and each is its neighbours' neighbour.

    >>> neighbours("ring", 4)
    [[1, 3], [0, 2], [1, 3], [0, 2]]

    Args:
        topology: everybody, the two beside oneself, or a ring and random ones.
        peers: n, at least 1.
        seed: of random neighbours.
        degree: of the random graph, on average.

    Raises:
        ValueError: the topology is unknown.
    """
    if topology not in ("complete", "ring", "random"):
        raise ValueError(f"topology must be 'complete', 'ring' or 'random', got {topology!r}")
    edges = {frozenset((i, (i + 1) % peers)) for i in range(peers)}
    if topology == "complete":
        edges = {frozenset((i, j)) for i in range(peers) for j in range(i)}
    elif topology == "random":
        extra = peers * max(0, degree - 2) // 2
        picks = Stream(seed, Purpose.TOPOLOGY).words(2 * extra).reshape(-1, 2) % peers
        edges |= {frozenset(map(int, pair)) for pair in picks}
    near: list[set[int]] = [set() for _ in range(peers)]
    for edge in edges:
        if len(edge) == 2:
            i, j = edge
            near[i].add(j)
            near[j].add(i)
    return [sorted(found) for found in near]


def among(topology: Topology, members: Iterable[int], seed: int = 0) -> dict[int, list[int]]:
    """The neighbours of each of some members, by number.

    >>> among("ring", (2, 3, 5, 8))[2]
    [3, 8]

    Args:
        topology: as of `neighbours`.
        members: their numbers.
        seed: of random neighbours.

    Raises:
        ValueError: the topology is unknown.
    """
    numbers = sorted(members)
    near = neighbours(topology, len(numbers), seed)
    return {number: [numbers[i] for i in others] for number, others in zip(numbers, near, strict=True)}
