"""Updates that are made when they are read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from fedpeft.strategies.base import Update

Item = TypeVar("Item")


class Mapped(Sequence[Update], Generic[Item]):
    """What a function makes of each item, whenever it is read; nothing is kept.

    >>> import torch
    >>> longer = Mapped([1.0, 2.0, 3.0], lambda x: Update(torch.tensor([x])))
    >>> [float(update.delta) for update in longer[1:]]
    [2.0, 3.0]

    Args:
        items: of any kind, an update each.
        make: the update of an item.
    """

    def __init__(self, items: Sequence[Item], make: Callable[[Item], Update]) -> None:
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, i: int) -> Update: ...
    @overload
    def __getitem__(self, i: slice) -> "Mapped[Item]": ...
    def __getitem__(self, i: int | slice) -> "Update | Mapped[Item]":
        return Mapped(self._items[i], self._make) if isinstance(i, slice) else self._make(self._items[i])

    def __iter__(self) -> Iterator[Update]:
        return map(self._make, self._items)
