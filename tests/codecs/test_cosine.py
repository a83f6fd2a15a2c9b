"""The cosine transform against its definition, and DeMo as a chain."""

import numpy as np
import pytest
import torch

from fedpeft.codecs import DCT, Context, Identity, Numbers, TopK, chain
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, normal, there_and_back, without_type_checks


def cosines(n):
    """The orthonormal DCT-II by its definition."""
    i, k = np.arange(n), np.arange(n)[:, None]
    return np.sqrt(np.where(k == 0, 1, 2) / n) * np.cos(np.pi * (2 * i + 1) * k / (2 * n))


def by_definition(matrix, chunk):
    """Coefficients block after block."""
    blocks = [matrix[i : i + chunk, j : j + chunk]
              for i in range(0, matrix.shape[0], chunk) for j in range(0, matrix.shape[1], chunk)]  # fmt: skip
    return np.concatenate([(cosines(b.shape[0]) @ b @ cosines(b.shape[1]).T).ravel() for b in blocks])


@pytest.mark.parametrize("chunk", [2, 3, 7, 12, 64, 100])
@pytest.mark.parametrize("shape", [(64, 64), (100, 70), (8, 768), (130, 8), (1, 5), (5, 1), (7,), (130,), (3, 5, 4)])
def test_equals_its_definition_and_is_undone(shape, chunk):
    space = Space((Slot("a", shape, "lora_A"),))
    x, step = normal(space), DCT(chunk)
    rows = (shape[0], -1) if len(shape) > 1 else (1, -1)
    y = step.forward(x, space, CONTEXT)
    assert np.allclose(y.numpy(), by_definition(x.double().numpy().reshape(rows), chunk), rtol=0, atol=2e-6)
    assert torch.allclose(step.inverse(y, space, CONTEXT), x, rtol=0, atol=3e-6)
    assert torch.isclose(y.norm(), x.norm(), rtol=1e-6)


def test_a_scalar_and_nothing_are_left_alone():
    space = Space(
        (Slot("a", (), "head"), Slot("b", (0, 4), "head"), Slot("c", (4, 0), "head"), Slot("d", (1,), "head"))
    )
    x = torch.tensor([3.0, -2.0])
    assert torch.equal(DCT().forward(x, space, CONTEXT), x) and torch.equal(DCT().inverse(x, space, CONTEXT), x)


def test_slots_are_transformed_apart_and_nothing_else_is_touched():
    space = Space((Slot("a", (65, 3), "lora_A"), Slot("b", (9,), "head"), Slot("c", (2, 70), "lora_B")))
    x = normal(space)
    before, y = x.clone(), DCT().forward(x, space, CONTEXT)
    for slot in space.slots:
        alone = Space((slot,))
        part = space.view(x, slot.name).reshape(-1).clone()
        assert torch.equal(space.view(y, slot.name).reshape(-1), DCT().forward(part, alone, CONTEXT))
    DCT().inverse(y, space, CONTEXT)
    assert torch.equal(x, before)


def weighed(rows, coefficients):
    """The sum of rows times coefficients, four at a time, in operations of numpy that are rounded one by one."""
    out = np.zeros_like(rows[0])
    whole = len(rows) & ~3
    for i in range(0, whole, 4):
        a, b, c, d = (coefficients[i + k] * rows[i + k] for k in range(4))
        out = out + ((a + b) + (c + d))
    for row, coefficient in zip(rows[whole:], coefficients[whole : len(rows)], strict=True):
        out = out + coefficient * row
    return out


def step_by_step(x, c):
    """C x by folding: odd frequencies from the differences of mirrored rows, even ones from the sums."""
    n, out, frequencies = len(x), np.empty_like(x), np.arange(len(x))
    while len(x) > 1 and len(x) % 2 == 0:
        half = len(x) // 2
        sums, differences = x[:half] + x[::-1][:half], x[:half] - x[::-1][:half]
        for k in frequencies[1::2]:
            out[k] = weighed(differences, c[k])
        x, frequencies = sums, frequencies[::2]
    for k in frequencies:
        out[k] = weighed(x, c[k])
    assert n == len(out)
    return out


@pytest.mark.parametrize("shape", [(64, 64), (8, 64), (12, 7), (1, 48)])
def test_every_operation_is_rounded_in_its_order(shape):
    """So that a site with other vector instructions decodes the same bits."""
    space = Space((Slot("a", shape, "lora_A"),))
    x = normal(space)
    tall, wide = (cosines(n).astype(np.float32) for n in shape)
    expected = step_by_step(np.ascontiguousarray(step_by_step(x.numpy().reshape(shape), tall).T), wide).T
    assert np.array_equal(DCT().forward(x, space, CONTEXT).numpy().reshape(shape), expected)


def test_demo_is_a_chain():
    """The 32 largest of each block of 64 x 64 coefficients, as DeMo takes them; values rounded as finely as we can."""
    space = Space((Slot("a", (128, 192), "lora_A"),))
    x = normal(space)
    codec = chain(DCT(), TopK(density=32 / 4096, bits=4))
    blocks = by_definition(x.double().numpy().reshape(128, 192), 64).reshape(6, 4096)
    top = np.argsort(-np.abs(blocks), axis=1)[:, :32]
    parts = codec.encode(x, space, Context())
    mask = np.unpackbits(parts["mask"].bits, bitorder="little").reshape(6, 4096).astype(bool)
    assert all(set(np.flatnonzero(m)) == set(t) for m, t in zip(mask, top, strict=True))
    sparse = np.where(mask, blocks, 0)
    exact = np.block(
        [[cosines(64).T @ sparse[3 * i + j].reshape(64, 64) @ cosines(64) for j in range(3)] for i in (0, 1)]
    )
    y = there_and_back(codec, x, space).numpy().reshape(128, 192)
    assert np.linalg.norm(y - exact) < 0.06 * np.linalg.norm(exact)


def test_a_smooth_delta_is_a_few_coefficients():
    space = Space((Slot("a", (64, 64), "lora_A"),))
    i = torch.linspace(0, 1, 64)
    x = (i[:, None] ** 2 - i[None, :]).reshape(-1)
    few = TopK(density=0.01, bits=4)
    assert (there_and_back(chain(DCT(), few), x, space) - x).norm() < 0.2 * x.norm()
    assert (there_and_back(few, x, space) - x).norm() > 0.9 * x.norm()


def test_coefficients_beyond_float32_are_refused():
    space = Space((Slot("a", (64, 64), "lora_A"),))
    parts = {"values": Numbers(np.full(space.numel, np.finfo(np.float32).max))}
    with pytest.raises(PayloadError, match="the inverse cosine transform of what came is not finite") as caught:
        chain(DCT(), Identity()).decode(parts, space, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize("chunk", [1, 257, 64.0, True])
@without_type_checks()
def test_a_wrong_chunk_is_named(chunk):
    with pytest.raises(ValueError, match=f"chunk must be an integer from 2 to 256, got {chunk}"):
        DCT(chunk)
