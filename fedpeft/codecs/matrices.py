"""Slots as matrices."""

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.space import Slot, Space


def sides(slot: Slot) -> tuple[int, int]:
    """Rows and columns: dimensions after the first are one, and a vector is a row.

    >>> sides(Slot("a", (4, 3, 2), "head")), sides(Slot("b", (5,), "head"))
    ((4, 6), (1, 5))
    """
    m = slot.shape[0] if len(slot.shape) > 1 else 1
    return m, slot.numel // max(1, m)


def grids(space: Space) -> NDArray[np.int64]:
    """Each slot as the matrix that `kernels.context` codes: rows along its longer side, a family for each role.

    A vector is a column.
    """
    families = {role: i for i, role in enumerate(sorted({slot.role for slot in space.slots}))}
    found = []
    for slot, begin in zip(space.slots, space.bounds, strict=False):
        if slot.numel:
            height, width = sides(slot) if len(slot.shape) > 1 else (slot.numel, 1)
            long = (height, width, width, 1) if height >= width else (width, height, 1, width)
            found.append((begin, *long, families[slot.role]))
    return np.array(found, np.int64).reshape(-1, kernels.context.GRID)
