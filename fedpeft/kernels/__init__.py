"""Pure arrays in, arrays out: compiled loops over coordinates, bits and bytes."""

from fedpeft.kernels import context, packing, planes, rans, rice, tables
from fedpeft.kernels.blocks import block_edges, block_largest, block_squares, round_blocks
from fedpeft.kernels.codebook import look_up, nearest_levels
from fedpeft.kernels.cosine import cosine_blocks
from fedpeft.kernels.deadzone import quantise_to_rate
from fedpeft.kernels.drawing import put_strata, take_strata
from fedpeft.kernels.folding import add_scaled, add_votes, voters
from fedpeft.kernels.gram import add_plane_products, plane_counts
from fedpeft.kernels.gram_schmidt import orthonormal
from fedpeft.kernels.hadamard import flip_signs, halving_edges, sample_hadamard, spread_hadamard, walsh_hadamard
from fedpeft.kernels.kept import kept_by_slot, spread_kept
from fedpeft.kernels.largest import keep_largest
from fedpeft.kernels.levels import quantise_kept
from fedpeft.kernels.logarithm import LEVELS, log_codes
from fedpeft.kernels.normal import quantise_normal
from fedpeft.kernels.outer import add_outer
from fedpeft.kernels.philox import philox_block, philox_words
from fedpeft.kernels.planes import popcount
from fedpeft.kernels.rademacher import add_signed, signed_sums
from fedpeft.kernels.ranks import keep_by_rank
from fedpeft.kernels.rotation import rotate_and_quantise, rotate_back
from fedpeft.kernels.select import all_finite, magnitude_threshold
from fedpeft.kernels.strata import stratified
from fedpeft.kernels.subsets import add_plane_values, add_plane_votes
from fedpeft.kernels.ternary import add_ternary, align_planes, pack_ternary, unpack_ternary, write_planes
from fedpeft.kernels.warm import is_warm, warm_up

__all__ = [
    "LEVELS",
    "add_outer",
    "add_plane_products",
    "add_plane_values",
    "add_plane_votes",
    "add_scaled",
    "add_signed",
    "add_ternary",
    "add_votes",
    "align_planes",
    "all_finite",
    "block_edges",
    "block_largest",
    "block_squares",
    "context",
    "cosine_blocks",
    "flip_signs",
    "halving_edges",
    "is_warm",
    "keep_by_rank",
    "keep_largest",
    "kept_by_slot",
    "log_codes",
    "look_up",
    "magnitude_threshold",
    "nearest_levels",
    "orthonormal",
    "pack_ternary",
    "packing",
    "philox_block",
    "philox_words",
    "plane_counts",
    "planes",
    "popcount",
    "put_strata",
    "quantise_kept",
    "quantise_normal",
    "quantise_to_rate",
    "rans",
    "rice",
    "rotate_and_quantise",
    "rotate_back",
    "round_blocks",
    "sample_hadamard",
    "signed_sums",
    "spread_hadamard",
    "spread_kept",
    "stratified",
    "tables",
    "take_strata",
    "unpack_ternary",
    "voters",
    "walsh_hadamard",
    "warm_up",
    "write_planes",
]
