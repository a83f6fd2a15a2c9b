"""Pure arrays in, arrays out: compiled loops over coordinates, bits and bytes."""

from fedpeft.kernels import planes, rans, rice, tables
from fedpeft.kernels.philox import philox_block, philox_words
from fedpeft.kernels.planes import popcount
from fedpeft.kernels.select import all_finite, magnitude_threshold
from fedpeft.kernels.ternary import add_ternary, pack_ternary, unpack_ternary
from fedpeft.kernels.warm import is_warm, warm_up

__all__ = [
    "add_ternary",
    "all_finite",
    "is_warm",
    "magnitude_threshold",
    "pack_ternary",
    "philox_block",
    "philox_words",
    "planes",
    "popcount",
    "rans",
    "rice",
    "tables",
    "unpack_ternary",
    "warm_up",
]
