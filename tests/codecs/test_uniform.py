"""Uniform: what torch makes of the same formula, to the bit."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.codecs import Uniform
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, SPACE, every_delta

BIG = Space((Slot("a", (300, 400), "lora_A"), Slot("b", (0,), "head"), Slot("c", (7,), "head")))


def rounded(codec, x, space, ctx):
    """Codes and what they stand for, slot by slot in torch."""
    half = 2 ** (codec.bits - 1) - 1
    codes, values = [], []
    noise = torch.from_numpy(ctx.private.words(space.numel) * 2.0**-32)
    for begin, end in pairwise(space.bounds):
        step = torch.tensor(float(x[begin:end].abs().max()) / half if end > begin else 0.0)
        scaled = x[begin:end] / step if step > 0 else torch.zeros(end - begin)
        scaled = (scaled + noise[begin:end]).floor() if codec.stochastic else scaled.round()
        codes.append((scaled.clamp(-half, half) + half).to(torch.uint8))
        values.append((codes[-1].float() - half) * float(step))
    return torch.cat(codes).numpy(), torch.cat(values).numpy()


@pytest.mark.parametrize("codec", [Uniform(*a) for a in ((2, False), (4, True), (5, False), (8, True), (8, False))])
@every_delta
def test_codes_and_numbers_are_those_of_the_formula_to_the_bit(codec, name):
    for space in (SPACE, LARGE, BIG):
        x = DELTAS[name](space)
        codes, values = rounded(codec, x, space, CONTEXT)
        parts = codec.encode(x, space, CONTEXT)
        assert np.array_equal(parts["code"].values, codes)
        assert codec.decode(parts, space, CONTEXT).numpy().tobytes() == values.tobytes()


def test_halves_go_to_the_even_multiple():
    space = Space((Slot("a", (6,), "a"),))
    x = torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    y = Uniform(4).decode(Uniform(4).encode(x, space, CONTEXT), space, CONTEXT)
    assert y.tolist() == [7.0, 0.0, 2.0, 2.0, 0.0, -2.0]
