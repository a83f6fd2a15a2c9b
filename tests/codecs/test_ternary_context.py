"""Ternary's context code: the plain codec's vectors in fewer bytes, and closed to hostile streams."""

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import wire
from fedpeft.codecs import Numbers, Ternary
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, SPACE, every_delta, header, normal, there_and_back

DENSITIES = [1e-9, 0.01, 0.2, 0.5, 1.0]
SHAPES = st.lists(st.lists(st.integers(0, 12), max_size=3).map(tuple), min_size=1, max_size=5)
LORA = Space(
    tuple(
        Slot(f"layer.{i}.lora_{ab}", (8, 600) if ab == "A" else (600, 8), f"lora_{ab}")
        for i, ab in product(range(6), "AB")
    )
)


def floor_bits(kept, numel):
    """H(k) + k bits for each coordinate."""
    k = kept / numel
    return numel * (k - sum(p * np.log2(p) for p in (k, 1 - k) if p > 0))


def slot_floor_bits(codec, x, space):
    """The same with each slot's own k."""
    y = there_and_back(codec, x, space)
    return sum(floor_bits(int((view != 0).sum()), view.numel()) for view in space.tensors(y).values() if view.numel())


def payload_bytes(codec, x, space):
    return len(wire.pack(header(codec, space), codec.encode(x, space, CONTEXT)))


def code_bytes(codec, x, space):
    return codec.encode(x, space, CONTEXT)["stream"].values.size


def low_rank(space, rank=2, noise=0.5):
    """Factors whose columns are correlated, as when few directions of a layer are learned, with rows of many sizes."""
    rng, x = np.random.default_rng(0), torch.empty(space.numel)
    for slot in space.slots:
        m, n = slot.shape
        vectors = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
        space.view(x, slot.name).copy_(torch.from_numpy(vectors + noise * rng.standard_normal((m, n))))
    return x


@every_delta
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("threshold", ["slot", "global"])
def test_what_is_decoded_is_what_plain_parts_decode_to(name, density, threshold):
    for space in (SPACE, LARGE):
        x = DELTAS[name](space)
        plain, coded = (Ternary(density, threshold=threshold, context=context) for context in (False, True))
        assert torch.equal(there_and_back(coded, x, space), there_and_back(plain, x, space))
        assert np.array_equal(
            coded.encode(x, space, CONTEXT)["scale"].values, plain.encode(x, space, CONTEXT)["scale"].values
        )


@settings(deadline=None)
@given(SHAPES, st.sampled_from(DENSITIES), st.integers(0, 99))
def test_spaces_of_any_shapes(shapes, density, seed):
    space = Space(tuple(Slot(f"{i}", shape, "ab"[i % 2]) for i, shape in enumerate(shapes)))
    x = normal(space, seed)
    plain, coded = Ternary(density), Ternary(density, context=True)
    assert torch.equal(there_and_back(coded, x, space), there_and_back(plain, x, space))
    assert code_bytes(coded, x, space) <= coded.layout(space)["stream"].numel


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_factors_of_low_rank_take_far_less_than_the_entropy_of_independent_coordinates(density):
    x = low_rank(LORA)
    plain, coded = Ternary(density), Ternary(density, context=True)
    assert payload_bytes(coded, x, LORA) < 0.87 * payload_bytes(plain, x, LORA)
    assert 8 * code_bytes(coded, x, LORA) < 0.87 * slot_floor_bits(plain, x, LORA)


def test_the_short_axis_is_what_is_learned_whichever_comes_first():
    x = low_rank(LORA)
    turned = Space(tuple(Slot(slot.name, slot.shape[::-1], slot.role) for slot in LORA.slots))
    y = torch.cat([LORA.view(x, slot.name).T.reshape(-1) for slot in LORA.slots])
    codec = Ternary(0.1, context=True)
    assert np.array_equal(
        codec.encode(x, LORA, CONTEXT)["stream"].values, codec.encode(y, turned, CONTEXT)["stream"].values
    )


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("space", [SPACE, LARGE, LORA], ids=["small", "large", "lora"])
def test_independent_coordinates_take_little_more_than_plain_parts(density, space):
    x = normal(space)
    plain, coded = Ternary(density), Ternary(density, context=True)
    assert payload_bytes(coded, x, space) <= 1.02 * payload_bytes(plain, x, space) + 16


@pytest.mark.parametrize("name", ["zero", "negative zero"])
def test_nothing_is_learned_to_be_nothing(name):
    assert code_bytes(Ternary(0.2, context=True), DELTAS[name](LORA), LORA) < LORA.numel / 8 / 20


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([0.01, 0.2, 1.0]))
def test_any_stream_is_the_code_of_what_it_says_or_refused(data, density):
    codec = Ternary(density, context=True)
    stream = np.frombuffer(data, np.uint8)
    scale = Numbers(np.ones(len(SPACE.slots), np.float32))
    try:
        y = codec.decode({"scale": scale, "stream": Numbers(stream)}, SPACE, CONTEXT)
    except PayloadError as error:
        assert error.defect == Defect.STREAM
    else:
        assert set(y.tolist()) <= {-1.0, 0.0, 1.0}
        whole = Ternary(1.0, context=True).encode(y, SPACE, CONTEXT)["stream"].values
        assert density < 1 or np.array_equal(whole, stream)


@pytest.mark.parametrize("density", [0.01, 0.2, 1.0])
def test_streams_cut_short_or_going_on_are_refused(density):
    codec = Ternary(density, context=True)
    parts = codec.encode(normal(SPACE), SPACE, CONTEXT)
    stream = parts["stream"].values
    for other in (*(stream[:size] for size in range(stream.size)), *(np.append(stream, stream[:n]) for n in (1, 2, 9))):
        with pytest.raises(PayloadError) as caught:
            codec.decode({**parts, "stream": Numbers(other)}, SPACE, CONTEXT)
        assert caught.value.defect == Defect.STREAM


def test_a_stream_longer_than_any_is_refused_by_its_size():
    codec = Ternary(0.2, context=True)
    parts = codec.encode(normal(SPACE), SPACE, CONTEXT)
    most = codec.layout(SPACE)["stream"].numel
    long = wire.pack(header(codec), {**parts, "stream": Numbers(np.zeros(most + 1, np.uint8))})
    with pytest.raises(PayloadError) as caught:
        wire.unpack(long, header(codec), codec.layout(SPACE))
    assert caught.value.defect == Defect.PART_SIZE


@pytest.mark.slow
def test_a_real_lora_takes_three_quarters_of_the_floor():
    folder = Path(os.environ.get("FEDPEFT_DATA", "")) / "lora_gptneo125m_movies"
    if not folder.is_dir():
        pytest.skip("FEDPEFT_DATA does not name a folder that holds lora_gptneo125m_movies/")
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    space = Space(tuple(Slot(name, tuple(t.shape), name.split(".")[-2]) for name, t in tensors.items()))
    x = space.flatten(tensors)
    for density, most in ((0.01, 0.78), (0.05, 0.73), (0.1, 0.71), (0.2, 0.70), (0.5, 0.69)):
        plain, coded = Ternary(density), Ternary(density, context=True)
        assert 8 * code_bytes(coded, x, space) <= most * slot_floor_bits(plain, x, space)
