"""How every kernel is compiled, and the arrays that one may be given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
KERNELS: list[Any] = []


def kernel(function: F) -> F:
    """Compile `function` on its first call, without the interpreter lock, and keep the machine code on disk."""
    try:
        compiled: Any = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder can be written (a read-only container): compile once per process
        compiled = njit(nogil=True)(function)
    KERNELS.append(compiled)
    result: F = compiled
    return result


def inlined(function: F) -> F:
    """Inside a kernel: put the body of `function` where it is called; it is compiled with its caller, not by itself."""
    result: F = njit(nogil=True, inline="always")(function)
    return result


def is_compiled(compiled: Any) -> bool:
    """Whether a kernel is loaded, or its machine code lies on disk and is newer than its source."""
    if compiled.signatures:
        return True
    folder, source = compiled.stats.cache_path, Path(compiled.py_func.__code__.co_filename)
    if folder is None or not source.exists():
        return False
    indices = Path(folder).glob(f"{source.stem}.{compiled.py_func.__qualname__}-*.nbi")
    return any(index.stat().st_mtime >= source.stat().st_mtime for index in indices)


@intrinsic  # type: ignore[misc, unused-ignore]
def trailing_zeros(_typing: Any, _word: Any) -> Any:
    """Inside a kernel: the index of the lowest bit set in a uint64 (64 where none is)."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), build


@intrinsic  # type: ignore[misc, unused-ignore]
def bits_set(_typing: Any, _word: Any) -> Any:
    """Inside a kernel: how many bits of a uint64 are set."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


@intrinsic  # type: ignore[misc, unused-ignore]
def add_pairs(typing: Any, out: Any, at: Any, table: Any, i: Any, j: Any) -> Any:
    """Inside a kernel: add table[i : i + 2] to out[at : at + 2] and table[j : j + 2] to out[at + 2 : at + 4].

    All are float64 and contiguous. numba leaves it to loops to become vector instructions, and four is no loop.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def pointer(array: int, index: int, lanes: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            first = builder.gep(data, [arguments[index]])
            return builder.bitcast(first, ir.VectorType(ir.DoubleType(), lanes).as_pointer())

        pairs = [builder.load(pointer(2, index, 2), align=8) for index in (3, 4)]
        both = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0, 1, 2, 3])
        four = builder.shuffle_vector(*pairs, both)
        held = pointer(0, 1, 4)
        builder.store(builder.fadd(builder.load(held, align=8), four), held, align=8)
        return context.get_dummy_value()

    return types.void(out, types.uint64, table, types.uint64, types.uint64), build


def vector(array: NDArray[Any], dtype: type[np.generic], name: str) -> NDArray[Any]:
    """Give `array` as numba wants it (one specialisation per kernel): aligned, contiguous, writable; a copy if need be.

    Raises:
        ValueError: `array` is not one-dimensional or not of `dtype`.
    """
    if array.ndim != 1 or array.dtype != dtype:
        raise ValueError(f"{name}: expected one dimension of {np.dtype(dtype)}, got {array.dtype}{array.shape}")
    return np.require(array, dtype, ["C", "A", "W"])


def words(data: NDArray[np.uint8], spare: int) -> NDArray[np.uint64]:
    """Copy bytes to little-endian 64-bit words, followed by at least `spare` bytes of zeros."""
    padded = np.zeros((data.size + spare + 7) // 8, np.uint64)
    padded.view(np.uint8)[: data.size] = data
    return padded


def writable(array: NDArray[Any], dtype: type[np.generic], name: str) -> None:
    """Check that a kernel may write its result into `array`.

    Raises:
        ValueError: it is not one-dimensional, contiguous, aligned, writable or of `dtype`.
    """
    if array.ndim != 1 or array.dtype != dtype or not array.flags.carray:
        raise ValueError(f"{name}: expected one contiguous writable dimension of {np.dtype(dtype)}")
