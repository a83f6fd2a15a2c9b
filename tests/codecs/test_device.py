"""What is encoded where a delta lies is bit for bit what numba makes of it on the CPU.

Everything runs on the CPU through the kernels for devices. On a machine with a GPU, the same and on CUDA:

    python -m pytest tests/codecs/test_device.py tests/kernels/test_device.py -k cuda
"""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from fedpeft.codecs import SRHT, Clip, Codec, Context, Rotated, Ternary, TopK, chain, per_slot
from fedpeft.kernels import device
from fedpeft.space import Slot, Space
from tests.codecs.examples import CODECS, CONTEXT, DELTAS, LARGE, SPACE, all_bits, every_delta, normal

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
on_every_device = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=needs_cuda)])
HELD = [codec for codec in CODECS if isinstance(codec, Ternary | Rotated | TopK | SRHT)]
KINDS = [Ternary, Rotated, TopK, SRHT]
SHAPES = [[(1,)], [()], [(0, 3)], [(8,), (16, 2)], [(9,), (0,), (1, 1), (7,)]]
ODD = [Space(tuple(Slot(f"{i}", shape, "a") for i, shape in enumerate(shapes))) for shapes in SHAPES]


def assert_same(codec, delta, space, where, ctx=CONTEXT):
    with device.anywhere():
        there = codec.encode(delta.to(where), space, ctx)
    assert all_bits(there) == all_bits(codec.encode(delta, space, ctx))


@pytest.mark.parametrize("codec", HELD, ids=repr)
@every_delta
def test_parts_are_the_same_for_every_delta(codec, name):
    for space in (SPACE, LARGE):
        assert_same(codec, DELTAS[name](space), space, "cpu")


@pytest.mark.parametrize("codec", HELD, ids=repr)
def test_parts_are_the_same_for_spaces_of_any_sizes(codec):
    for space in ODD:
        assert_same(codec, normal(space), space, "cpu")


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_makes_the_same_parts(kind):
    for codec in HELD:
        if isinstance(codec, kind):
            for space in (SPACE, LARGE):
                for delta in DELTAS.values():
                    assert_same(codec, delta(space), space, "cuda")
            for space in ODD:
                assert_same(codec, normal(space), space, "cuda")


@needs_cuda
def test_cuda_is_chosen_by_where_the_delta_lies():
    delta = normal(LARGE)
    for codec in (Ternary(), Rotated(), TopK(), SRHT(density=0.1)):
        there = codec.encode(delta.cuda(), LARGE, CONTEXT)
        assert all_bits(there) == all_bits(codec.encode(delta, LARGE, CONTEXT))


@on_every_device
@pytest.mark.parametrize(
    "codec",
    [*(Ternary(0.1, scale) for scale in ("mean", "norm", "unbiased")), Ternary(0.1, "unbiased", "global"),
     *(Rotated(bits) for bits in (1, 2, 3, 4)), Rotated(2, "norm", 1 << 15), TopK(), TopK(0.1, chunk=None),
     SRHT(4096), SRHT(density=0.1, block=1 << 12)],
    ids=repr,
)  # fmt: skip
def test_a_million_coordinates_in_slots_that_begin_anywhere(codec, where):
    shapes = [(16, 4096), (4093, 16), (3,), (16, 4096), (1 << 19,), (777, 129), (16, 4096), (1,)]
    space = Space(tuple(Slot(f"{i}", shape, "a") for i, shape in enumerate(shapes)))
    for seed in range(2):
        assert_same(codec, normal(space, seed) * 0.01, space, where, Context(seed, 1, 2))


@on_every_device
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("codec", [Ternary(), Rotated(), TopK(), SRHT(density=0.1)], ids=repr)
def test_what_is_not_finite_is_refused(codec: Codec, bad, where):
    delta = normal(SPACE)
    delta[7] = bad
    with device.anywhere(), pytest.raises(ValueError, match="coordinate 7 of the delta is not finite"):
        codec.encode(delta.to(where), SPACE, CONTEXT)


@on_every_device
def test_parts_of_a_composed_codec_are_the_same(where):
    codec = chain(per_slot({"lora_A": Rotated(2), "head": TopK(0.3)}, default=Ternary(0.3)))
    assert_same(codec, normal(LARGE), LARGE, where)


@on_every_device
@every_delta
@pytest.mark.parametrize("norm", [1e-3, 0.7, 1e6])
def test_a_clipped_delta_is_the_same(name, norm, where):
    for space in (SPACE, LARGE):
        delta = DELTAS[name](space)
        with device.anywhere():
            there = Clip(norm).forward(delta.to(where), space, CONTEXT)
        assert there.device.type == where and torch.equal(there.cpu(), Clip(norm).forward(delta, space, CONTEXT))


class Crossing(TorchFunctionMode):
    """Counts the bytes that are copied to the host."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            self.nbytes += args[0].nbytes
        elif func in (torch.Tensor.numpy, torch.Tensor.tolist):
            assert args[0].device.type == "cpu"
        return func(*args, **(kwargs or {}))


@on_every_device
@pytest.mark.parametrize(
    ("codec", "bits"),
    [(Ternary(0.2), 1 + 0.2), (Rotated(1), 1), (Rotated(2), 2), (Rotated(3), 4), (Rotated(4), 4),
     (TopK(0.01), 1 + 0.01 * 32), (SRHT(density=0.1), 0.1 * 32)],
    ids=repr,
)  # fmt: skip
def test_little_more_than_the_payload_is_copied_to_the_host(codec, bits, where):
    space = Space(tuple(Slot(f"{i}", (16, 4096), "a") for i in range(8)))
    delta = normal(space).to(where)
    with device.anywhere(), Crossing() as crossing:
        codec.encode(delta, space, CONTEXT)
    assert space.numel * bits / 8 <= crossing.nbytes <= space.numel * bits / 8 * 1.08


@pytest.mark.parametrize("codec", [Ternary(0.1, s) for s in ("mean", "norm", "unbiased")] + [Rotated(4)], ids=repr)
def test_numbas_sums_are_asked_for_where_an_order_of_addition_could_show(codec, monkeypatch):
    monkeypatch.setattr("fedpeft.kernels.device.sums.settled", lambda value, slack: np.zeros(value.shape, bool))
    monkeypatch.setattr("fedpeft.kernels.device.sums.row_sums", lambda term, *rows: np.ones(len(rows[0])))
    assert_same(codec, normal(LARGE), LARGE, "cpu")


def test_numbas_sum_decides_a_bound_where_an_order_of_addition_could_show(monkeypatch):
    expected = Clip(0.7).forward(normal(LARGE), LARGE, CONTEXT)
    monkeypatch.setattr("fedpeft.kernels.device.sums.settled", lambda value, slack: np.zeros(value.shape, bool))
    monkeypatch.setattr("fedpeft.kernels.device.sums.row_sums", lambda term, *rows: np.ones(len(rows[0])))
    with device.anywhere():
        assert torch.equal(Clip(0.7).forward(normal(LARGE), LARGE, CONTEXT), expected)


def test_only_what_lies_on_a_gpu_is_held_unless_asked():
    assert not device.holds(torch.zeros(1))
    with device.anywhere():
        assert device.holds(torch.zeros(1))
    assert not device.holds(torch.zeros(1))


@pytest.mark.parametrize("codec", [Ternary(), *(Rotated(bits) for bits in (1, 4)), TopK(), SRHT(density=0.1)], ids=repr)
def test_slots_of_very_different_magnitudes_have_the_same_parts(codec):
    space = Space(tuple(Slot(f"{i}.lora_A", (8, 100), "lora_A") for i in range(3)))
    scales = torch.tensor([1e12, 1.0, 1e-28]).repeat_interleave(800)
    assert_same(codec, scales * normal(space), space, "cpu")
