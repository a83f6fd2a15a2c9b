"""Few bits a coordinate, packed to bytes before they leave the device."""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional


def pack_bits(bits: Bool[Tensor, " n"]) -> UInt8[Tensor, " bytes"]:
    """Bit i & 7 of byte i >> 3 is bits[i]; the bits past the end are zero.

    >>> pack_bits(torch.tensor([True, False, True, False, False, False, False, False, True]))
    tensor([5, 1], dtype=torch.uint8)
    """
    return pack_codes(bits.view(torch.uint8), 1)


def pack_codes(codes: UInt8[Tensor, " n"], width: int) -> UInt8[Tensor, " bytes"]:
    """Pack codes of 1, 2 or 4 bits, as `fedpeft.kernels.packing.pack_symbols` does."""
    each = _each(width)
    lanes = functional.pad(codes, (0, -codes.numel() % each)).view(-1, each)
    packed = lanes[:, 0].clone()
    for lane in range(1, each):
        packed |= lanes[:, lane] << lane * width
    return packed


def _each(width: int) -> int:
    if width not in (1, 2, 4):
        raise ValueError(f"width: expected 1, 2 or 4 bits, got {width}")
    return 8 // width
