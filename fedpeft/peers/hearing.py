"""Who hears whom: everybody everybody, or each its neighbours alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hearing:
    """Who holds what whom publishes, the same for all of a run.

    Where members hear their neighbours alone, nobody holds what all published, so no epoch is ever closed.

    >>> sorted(Hearing({1: [2, 4], 2: [1, 3]}).of(1, (1, 2, 3, 4)))
    [1, 2, 4]

    Args:
        near: the neighbours of each member, who are its neighbours' neighbours; None: all hear all.
    """

    near: Mapping[int, Sequence[int]] | None = None

    @property
    def all(self) -> bool:
        """Whether all hear all."""
        return self.near is None

    def of(self, member: int, members: Iterable[int]) -> frozenset[int]:
        """Those of some members whom a member hears, itself among them."""
        if self.near is None:
            return frozenset(members)
        return frozenset(members) & {member, *self.near.get(member, ())}


EVERYBODY = Hearing()
