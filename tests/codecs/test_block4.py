"""Block4: the levels of the papers, blocks that never cross slots, and what a hostile peer can send."""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fedpeft.codecs import Block4, Numbers
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, SPACE, normal, there_and_back, without_type_checks

BIG = Space((Slot("a", (1 << 17,), "lora_A"),))


def levels(name):
    """What a block of all codes decodes to."""
    x = torch.linspace(-1, 1, 100_001)
    space = Space((Slot("a", (x.numel(),), "a"),))
    return torch.unique(there_and_back(Block4(name, x.numel()), x, space)).numpy()


def test_normal_float_levels_are_quantiles_of_a_normal_number():
    """The construction of QLoRA, section 3: 8 quantiles up to the largest, 7 down to it, and zero."""
    largest = 0.9677083
    up = [NormalDist().inv_cdf(p) for p in np.linspace(largest, 0.5, 9)[:-1]]
    down = [-NormalDist().inv_cdf(p) for p in np.linspace(largest, 0.5, 8)[:-1]]
    assert np.allclose(levels("nf4"), np.array(sorted([*up, 0.0, *down])) / max(up), atol=1e-6)


def test_exponent_levels_are_powers_of_two_and_zero():
    powers = [2.0**-e for e in range(7)]
    assert np.array_equal(levels("e3m0"), sorted([*powers, 0.0, *(-p for p in powers)]))


@pytest.mark.parametrize("name", ["nf4", "e3m0"])
@pytest.mark.parametrize("block", [1, 5, 64, 1000])
def test_every_number_takes_the_nearest_level_of_its_slots_block(name, block):
    x, table = normal(LARGE), levels(name).astype(np.float64)
    y = there_and_back(Block4(name, block), x, LARGE).numpy()
    for begin, end in pairwise(LARGE.bounds):
        for first in range(begin, end, block):
            part = slice(first, min(first + block, end))
            scale = float(torch.tensor(np.abs(x.numpy()[part]).max()).bfloat16())
            distance = np.abs(x.numpy()[part, None] - table * scale)
            assert np.allclose(np.abs(x.numpy()[part] - y[part]), distance.min(axis=1), rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(("name", "error"), [("nf4", 0.0905), ("e3m0", 0.188)])
def test_the_error_for_normal_numbers(name, error):
    x = normal(BIG)
    table = levels(name).astype(np.float64)
    largest = x.view(-1, 64).abs().amax(1, keepdim=True)
    exact = (x.view(-1, 64) / largest).numpy()
    nearest = table[np.abs(exact[..., None] - table).argmin(axis=-1)]
    formula = math.sqrt((((exact - nearest) * largest.numpy()) ** 2).sum() / float((x**2).sum()))
    assert float((there_and_back(Block4(name), x, BIG) - x).norm() / x.norm()) == pytest.approx(formula, rel=2e-3)
    assert formula == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("name", ["nf4", "e3m0"])
def test_a_block_of_zeros_is_zeros_and_numbers_at_the_end_of_float32_are_finite(name):
    x = torch.zeros(LARGE.numel)
    x[-1] = 1.0
    assert torch.equal(there_and_back(Block4(name), x, LARGE), x)
    largest = torch.full((LARGE.numel,), torch.finfo(torch.float32).max)
    assert torch.allclose(there_and_back(Block4(name), largest, LARGE), largest, rtol=1 / 250)
    assert not there_and_back(Block4(name), DELTAS["least denormal"](LARGE), LARGE).any()


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_a_scale_that_is_no_number_is_refused(bits):
    parts = dict(Block4().encode(normal(SPACE), SPACE, CONTEXT))
    scales = parts["scale"].values.copy()
    scales[0] = bits
    with pytest.raises(PayloadError, match="1 steps of the largest are not finite") as caught:
        Block4().decode(parts | {"scale": Numbers(scales)}, SPACE, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize("bits", [0x7F7F, 0xFF7F, 0x8000, 0x0001])
def test_any_other_scale_gives_a_delta(bits):
    parts = dict(Block4().encode(normal(SPACE), SPACE, CONTEXT))
    scales = np.full_like(parts["scale"].values, bits)
    assert torch.isfinite(Block4().decode(parts | {"scale": Numbers(scales)}, SPACE, CONTEXT)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block4("int4"), "levels must be 'nf4' or 'e3m0', got 'int4'"),
        (lambda: Block4(block=0), "block must be an integer above 0, got 0"),
        (lambda: Block4(block=64.0), "block must be an integer above 0, got 64.0"),
        (lambda: Block4(block=True), "block must be an integer above 0, got True"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
