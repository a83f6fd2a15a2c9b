"""Numbers that are read where they lie in a payload."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.codecs import Numbers

_BLOCK = 1 << 19  # numbers that are copied and looked at while they are in the processor's cache
_HALF_MAGNITUDE, _HALF_INFINITY = 0x7FFF, 0x7C00


class LentNumbers(Numbers):
    """Numbers as they came: `lent` is for reading only, and `values` is a copy of one's own, made on first use."""

    _there: NDArray[Any]

    def __init__(self, there: NDArray[Any]) -> None:
        object.__setattr__(self, "_there", there)

    @property
    def lent(self) -> NDArray[Any]:
        """The numbers where they lie."""
        return self._there

    @cached_property
    def values(self) -> NDArray[Any]:
        """The numbers, writable, so that a codec may hand them to torch."""
        return self._there.astype(self._there.dtype.newbyteorder("="))


def first_not_finite(values: NDArray[Any]) -> int | None:
    """Where the first number is that is infinite or NaN; `values` may lie at any address."""
    block = np.empty(min(values.size, _BLOCK), values.dtype.newbyteorder("="))
    for begin in range(0, values.size, _BLOCK):
        count = min(_BLOCK, values.size - begin)
        block[:count] = values[begin : begin + count]
        if not _all_finite(block[:count]):
            return begin + int(np.argmin(np.isfinite(block[:count])))
    return None


def _all_finite(block: NDArray[Any]) -> bool:
    match block.dtype.name:
        case "float32":
            return kernels.all_finite(block)
        case "float16":
            return int((block.view(np.uint16) & _HALF_MAGNITUDE).max()) < _HALF_INFINITY
    return bool(np.isfinite(block).all())
