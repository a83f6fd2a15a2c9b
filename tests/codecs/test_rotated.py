"""Rotated: the error that theory says, the transform of a few lines, and what a hostile peer can send."""

import math

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context, Numbers, Rotated, Symbols
from fedpeft.errors import PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import LARGE, normal, there_and_back, without_type_checks

# Distortion of the Lloyd-Max quantiser of a standard normal number (Max, 1960, table I).
DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
BIG = Space((Slot("a", (1 << 16,), "lora_A"), Slot("b", (3, 5000), "lora_B")))


@pytest.mark.parametrize("bits", DISTORTION)
@pytest.mark.parametrize("spiky", [False, True])
def test_the_error_is_that_of_the_quantiser_whatever_the_delta(bits: int, spiky: bool) -> None:
    x = normal(BIG)
    x = x**5 if spiky else x
    least, unbiased = DISTORTION[bits], 1 / (1 - DISTORTION[bits]) - 1
    for scale, expected in (("mean", least), ("unbiased", unbiased)):
        error = float((there_and_back(Rotated(bits, scale), x, BIG) - x).norm() / x.norm())
        assert error == pytest.approx(math.sqrt(expected), rel=0.04)


def test_the_norm_is_kept_where_it_shall_be() -> None:
    x = normal(BIG)
    for slot in BIG.slots:
        y = BIG.view(there_and_back(Rotated(2, "norm", 64), x, BIG), slot.name)
        assert float(y.norm()) == pytest.approx(float(BIG.view(x, slot.name).norm()), rel=2e-3)


def test_the_mean_over_clients_comes_close_to_the_delta() -> None:
    x = normal(BIG)
    clients = [there_and_back(Rotated(1), x, BIG, Context(1, 2, client)) for client in range(16)]
    error = float((torch.stack(clients).mean(0) - x).norm() / x.norm())
    assert error == pytest.approx(math.sqrt((1 / (1 - DISTORTION[1]) - 1) / 16), rel=0.06)


@pytest.mark.parametrize(("bits", "expected"), [(1, [10 / 3, 0.0]), (4, [3.02, 0.95])])
def test_the_mean_of_a_block_that_one_number_outweighs_is_not_the_block(bits: int, expected: list[float]) -> None:
    space, x = Space((Slot("a", (2,), "head"),)), torch.tensor([3.0, 1.0])
    rounds = torch.stack([there_and_back(Rotated(bits), x, space, Context(1, number, 1)) for number in range(1, 401)])
    noise = 4 * float(rounds.std(0).max()) / 400**0.5
    assert torch.allclose(rounds.mean(0), torch.tensor(expected), rtol=0, atol=0.01 + noise)
    assert noise < 0.01 if bits == 1 else noise < 0.06


def test_a_block_is_the_rotation_of_the_paper() -> None:
    space, ctx, n = Space((Slot("a", (256,), "lora_A"),)), Context(3, 4, 5), 256
    x = torch.randn(n, generator=torch.Generator().manual_seed(1))
    h = np.array([[1.0]])
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    bits = np.unpackbits(ctx.private.words(n // 32).view(np.uint8), bitorder="little")
    rotation = h / math.sqrt(n) * (1.0 - 2.0 * bits)
    z = rotation @ x.double().numpy()
    q = np.sign(z)
    expected = rotation.T @ q * (z @ z) / (q @ z)
    decoded = there_and_back(Rotated(1, block=256), x, space, ctx)
    assert np.allclose(decoded.numpy(), expected, atol=1e-5)


def test_slots_of_any_size_are_cut_into_powers_of_two() -> None:
    sizes = np.diff(Rotated(block=128)._blocks(LARGE)[0])
    assert set(sizes.tolist()) <= {64, 128}
    assert sizes.sum() >= LARGE.numel


@pytest.mark.parametrize("scale", [3e38, -3e38])
def test_a_scale_beyond_float32_is_refused(scale: float) -> None:
    codec, ctx = Rotated(4), Context()
    parts = dict(codec.encode(normal(LARGE), LARGE, ctx))
    parts["scale"] = Numbers(np.full_like(parts["scale"].values, scale))
    with pytest.raises(PayloadError, match="a block's scale times its size is not finite"):
        codec.decode(parts, LARGE, ctx)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 5}, "bits must be 1, 2, 3 or 4, got 5"),
        ({"bits": True}, "bits must be"),
        ({"scale": "max"}, "scale must be"),
        ({"block": 96}, "block must be a power of two of at least 64, got 96"),
        ({"block": 32}, "block must be"),
        ({"block": 64.0}, "block must be"),
    ],
)
def test_a_wrong_setting_is_refused(arguments: dict, message: str) -> None:
    with without_type_checks(), pytest.raises(ValueError, match=message):
        Rotated(**arguments)


def test_codes_are_one_of_so_many_levels() -> None:
    code = Rotated(3).encode(normal(LARGE), LARGE, Context())["code"]
    assert isinstance(code, Symbols)
    assert (code.levels, int(code.values.max())) == (8, 7)


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("exponent", [-100, -90, 90, 110])
def test_a_delta_of_another_power_of_two_has_the_same_codes(bits: int, exponent: int) -> None:
    x, codec = normal(LARGE), Rotated(bits)
    near, far = (codec.encode(delta, LARGE, Context()) for delta in (x, torch.ldexp(x, torch.tensor(exponent))))
    assert np.array_equal(near["code"].values, far["code"].values)
    assert np.array_equal(np.ldexp(near["scale"].values, exponent), far["scale"].values)
