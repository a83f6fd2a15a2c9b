"""Twins of kernels in torch operations: tensors in, tensors out, on the device where they lie.

What a codec makes of a delta with them is bit for bit what it makes with numba on the CPU. Selection, signs, bits and
codes are integer operations and single IEEE additions and divisions, which every device does alike. Sums of floats are
not: a device adds in an order of its own. So a sum is taken here in any order, together with a bound on how far another
order may lead, and a number made of sums is given out only where all that lie within the bound round to one float32;
where they do not, its coordinates are copied and numba adds them. That is rare: one of 24,576 blocks of 4096 normal
numbers that `Rotated` rotated, two of 3,072 slots of 16,384 for `Ternary`.
"""

from fedpeft.kernels.device.hadamard import flip_signs, sample_hadamard, spread_hadamard, walsh_hadamard
from fedpeft.kernels.device.largest import keep_largest
from fedpeft.kernels.device.normal import quantise_normal
from fedpeft.kernels.device.philox import stream_words
from fedpeft.kernels.device.placement import anywhere, finite, holds, to_host
from fedpeft.kernels.device.planes import pack_bits, pack_codes
from fedpeft.kernels.device.select import kth_magnitude
from fedpeft.kernels.device.squares import of_square
from fedpeft.kernels.device.strata import stratified
from fedpeft.kernels.device.ternary import pack_ternary

__all__ = [
    "anywhere",
    "finite",
    "flip_signs",
    "holds",
    "keep_largest",
    "kth_magnitude",
    "of_square",
    "pack_bits",
    "pack_codes",
    "pack_ternary",
    "quantise_normal",
    "sample_hadamard",
    "spread_hadamard",
    "stratified",
    "stream_words",
    "to_host",
    "walsh_hadamard",
]
