"""What a byte says of a number."""

import numpy as np
import pytest
import torch

from fedpeft import kernels
from fedpeft.codecs import LogByte
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, normal, there_and_back

LINE = Space((Slot("a", (100_001,), "head"),))


def test_the_levels_are_powers_of_the_sixteenth_root_of_two():
    q = np.arange(1, 128)
    assert kernels.LEVELS.dtype == np.float32 and kernels.LEVELS.size == 255, "sign and magnitude fit one byte"
    assert np.array_equal(kernels.LEVELS, -kernels.LEVELS[::-1])
    assert np.allclose(kernels.LEVELS[127 + q], 2.0 ** ((q - 127) / 16), rtol=6e-8, atol=0)
    assert kernels.LEVELS[254] == 1 and kernels.LEVELS[254 - 16] == 0.5 and kernels.LEVELS[254 - 112] == 2.0**-7


def test_every_level_stands_for_itself():
    codes, scale = kernels.log_codes(kernels.LEVELS)
    assert np.array_equal(codes, np.arange(255)) and scale == 1


def test_the_code_is_the_nearest_logarithm():
    x = np.concatenate([np.linspace(-1, 1, 100_001), np.logspace(-6, 0, 10_001), [1.0]]).astype(np.float32)
    codes, scale = kernels.log_codes(x)
    exact = 127 + 16 * np.log2(np.maximum(1e-9, np.abs(x.astype(np.float64))))
    clear = np.abs(exact % 1 - 0.5) > 1e-5
    level = np.maximum(0, np.rint(np.maximum(exact, 0)))
    assert scale == 1 and clear.mean() > 0.99
    assert np.array_equal(codes[clear], (127 + np.sign(x) * level)[clear])


@pytest.mark.parametrize("j", [0, 1, 15, 16, 100, 125])
def test_a_boundary_is_a_geometric_mean(j):
    boundary = np.float32(2.0 ** (-(2 * j + 1) / 32))
    around = np.array([1, np.nextafter(boundary, np.float32(0)), np.nextafter(boundary, np.float32(1))], np.float32)
    assert kernels.log_codes(around)[0].tolist() == [254, 253 - j, 254 - j]


def test_relative_errors():
    x = torch.linspace(-1, 1, LINE.numel)
    y = there_and_back(LogByte(), x, LINE)
    sent = x.abs() > 1 / 239
    relative = ((y - x).abs() / x.abs())[sent]
    assert relative.max() < 2 ** (1 / 32) - 1 + 1e-6
    assert 0.012 < relative.square().mean().sqrt() < 0.013
    assert not y[x.abs() < 1 / 240].any() and not y[x == 0].any()


def test_slots_have_scales_of_their_own():
    x = normal(LARGE)
    y = there_and_back(LogByte(), x, LARGE)
    for slot in LARGE.slots:
        a, b = LARGE.view(x, slot.name), LARGE.view(y, slot.name)
        assert not a.numel() or (a - b).norm() < 0.0135 * a.norm() or a.numel() == 1
        assert not a.numel() or b.abs().max() == a.abs().max()


def test_decode_reads_any_scale():
    parts = LogByte().encode(normal(LARGE), LARGE, CONTEXT)
    parts["scale"].values[:] = np.finfo(np.float32).max
    assert torch.isfinite(LogByte().decode(parts, LARGE, CONTEXT)).all()
