"""What Ternary keeps, and at which scale."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from fedpeft.codecs import Numbers, Plane, Ternary
from fedpeft.errors import Defect, PayloadError
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, SPACE, normal, there_and_back

DENSITIES = [1e-9, 0.01, 0.2, 0.5, 0.999, 1.0]


def groups(codec, space):
    """The ranges that share a threshold and a scale."""
    ranges = pairwise(space.bounds) if codec.threshold == "slot" else [(0, space.numel)]
    return [slice(begin, end) for begin, end in ranges if end > begin]


def kept_by_sorting(x, density):
    """The k largest magnitudes by a full sort, ties kept and zeros not."""
    magnitude = np.abs(x)
    least = np.sort(magnitude)[::-1][max(1, round(density * x.size)) - 1]
    return (magnitude >= least) & (x != 0)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("threshold", ["slot", "global"])
@pytest.mark.parametrize("name", ["normal", "integers", "equal", "one", "zero", "denormal", "huge", "large and small"])
def test_exactly_the_largest_are_kept(density, threshold, name):
    codec = Ternary(density, threshold=threshold)
    for space in (SPACE, LARGE):
        x = DELTAS[name](space)
        parts = codec.encode(x, space, CONTEXT)
        mask = np.unpackbits(parts["mask"].bits, bitorder="little")[: space.numel].astype(bool)
        for group in groups(codec, space):
            assert np.array_equal(mask[group], kept_by_sorting(x.numpy()[group], density))
        signs = np.unpackbits(parts["sign"].bits, bitorder="little")[: parts["sign"].numel]
        assert np.array_equal(signs.astype(bool), x.numpy()[mask] < 0)
        assert parts["scale"].values.size == (len(space.slots) if threshold == "slot" else 1)


def test_by_head():
    x = torch.zeros(SPACE.numel)
    x[:4] = torch.tensor([3.0, -1.0, 0.0, 2.0])
    y = there_and_back(Ternary(density=3 / SPACE.numel, threshold="global"), x)
    assert y[:4].tolist() == [2.0, -2.0, 0.0, 2.0] and not y[4:].any()


@pytest.mark.parametrize(("density", "threshold"), [*product([0.01, 0.2, 1.0], ["slot", "global"])])
def test_each_scale_is_what_it_says(density, threshold):
    x = normal(LARGE).double()
    for scale in ("mean", "norm", "unbiased"):
        codec = Ternary(density, scale, threshold)
        y = there_and_back(codec, x.float(), LARGE).double()
        for group in groups(codec, LARGE):
            a, b = x[group], y[group]
            assert len(b[b != 0].abs().unique()) == 1
            match scale:
                case "mean":
                    best = (a - b).norm()
                    assert all((a - b * factor).norm() >= best for factor in (0.5, 0.99, 0.9999, 1.0001, 1.01, 2))
                case "norm":
                    assert torch.isclose(b.norm(), a.norm(), rtol=1e-6)
                case "unbiased":
                    assert torch.isclose(a @ b, a @ a, rtol=1e-6)


def test_a_slot_far_smaller_than_the_others_is_starved_by_a_global_threshold_only():
    x = torch.ones(SPACE.numel)
    small = SPACE.view(x, "layer.0.lora_B")
    small.mul_(1e-3)
    for threshold, alive in (("slot", True), ("global", False)):
        y = there_and_back(Ternary(0.2, threshold=threshold), x)
        assert bool(SPACE.view(y, "layer.0.lora_B").any()) == alive


@pytest.mark.parametrize("count", [-1, 1, 8])
def test_signs_that_do_not_fit_the_mask(count):
    parts = dict(Ternary().encode(normal(SPACE), SPACE, CONTEXT))
    n = parts["sign"].numel + count
    parts["sign"] = Plane(np.zeros(-(-n // 8), np.uint8), n)
    with pytest.raises(PayloadError, match=rf"keeps {n - count} coordinates, but {n} signs came") as caught:
        Ternary().decode(parts, SPACE, CONTEXT)
    assert caught.value.defect == Defect.COUNT


def test_decode_reads_scales_of_the_wire_only():
    parts = dict(Ternary(1.0).encode(normal(SPACE), SPACE, CONTEXT))
    parts["scale"] = Numbers(np.arange(len(SPACE.slots), dtype=np.float32))
    y = Ternary(1.0).decode(parts, SPACE, CONTEXT)
    for i, (begin, end) in enumerate(pairwise(SPACE.bounds)):
        assert (y[begin:end].abs() == i).all()
