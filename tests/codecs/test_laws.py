"""What holds for every codec, a stranger's too."""

import pickle
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from fedpeft import codecs, expressions, wire
from fedpeft.codecs import (
    NAMES,
    QSGD,
    Block4,
    Budget,
    Clip,
    Codec,
    Context,
    DeadZone,
    ErrorFeedback,
    Identity,
    LogByte,
    MagnitudeMask,
    Numbers,
    Plane,
    PublicSupport,
    RandomMask,
    Symbols,
    Ternary,
    TopK,
    Uniform,
    chain,
    per_slot,
)
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import (
    CODECS,
    CONTEXT,
    DELTAS,
    FEEDBACKS,
    LARGE,
    LARGEST_NUMBERS,
    LINEAR,
    MASKS,
    PLUGINS,
    SPACE,
    UNBIASED,
    Lottery,
    Ranking,
    all_bits,
    beyond,
    every_delta,
    header,
    normal,
    there_and_back,
    without_type_checks,
)

every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)


def test_every_public_name_is_held_to_the_laws():
    shown = " ".join(map(repr, [*CODECS, *FEEDBACKS]))
    assert not [name for name in NAMES if f"{name}(" not in shown], "add an instance to tests/codecs/examples.py"


@every_codec
@every_delta
def test_the_parts_follow_the_layout(codec, name):
    if beyond(codec, name):
        with pytest.raises(ValueError, match=r"coordinate \d+ is .*, beyond the range of float16"):
            codec.encode(DELTAS[name](SPACE), SPACE, CONTEXT)
        return
    layout, parts = codec.layout(SPACE), codec.encode(DELTAS[name](SPACE), SPACE, CONTEXT)
    assert layout.keys() == parts.keys()
    for key, field in layout.items():
        match field.kind, parts[key]:
            case "plane", Plane(bits, numel):
                assert bits.dtype == np.uint8 and bits.shape == (-(-numel // 8),)
                assert not numel % 8 or bits[-1] >> numel % 8 == 0
            case "symbols", Symbols(values, levels):
                numel = values.size
                assert values.dtype == np.uint8 and values.ndim == 1 and levels == field.levels
                assert values.max(initial=0) < levels
            case "numbers", Numbers(values):
                numel = values.size
                assert values.dtype == field.dtype and values.ndim == 1
                assert values.dtype.kind != "f" or np.isfinite(values).all()
                assert not field.permutation or sorted(values.tolist()) == list(range(numel))
            case kind, part:
                pytest.fail(f"{key} is declared as {kind} and is {part}")
        assert numel == field.numel or (field.ragged and numel < field.numel)


@every_codec
@every_delta
def test_the_wire_is_the_identity_and_what_comes_out_is_a_delta(codec, name):
    if beyond(codec, name):
        return
    parts = codec.encode(DELTAS[name](SPACE), SPACE, CONTEXT)
    payload = wire.pack(header(codec), parts)
    assert len(payload) <= wire.largest(codec.layout(SPACE), header(codec))
    came = wire.unpack(payload, header(codec), codec.layout(SPACE))
    assert all_bits(came) == all_bits(parts)
    assert wire.pack(header(codec), came) == payload == wire.pack(header(codec), dict(reversed(parts.items())))
    for part in came.values():
        assert (part.bits if isinstance(part, Plane) else part.values).flags.writeable, "torch warns of such an array"
    y = codec.decode(came, SPACE, CONTEXT)
    assert y.dtype == torch.float32 and y.shape == (SPACE.numel,) and torch.isfinite(y).all()
    assert torch.equal(y, codec.decode(parts, SPACE, CONTEXT))
    y.add_(1)
    assert all_bits(came) == all_bits(parts), "decode gives out the memory of the parts"


NEVER_REFUSING = Block4, LogByte, TopK, DeadZone, Uniform, Budget
AT_THE_END = [*(Uniform(6, how) for how in (False, True)), QSGD(49), QSGD(127), TopK(0.2)]
AT_THE_END += [MagnitudeMask(*a, bits) for a in ((0.9, 0.2), (1.0, 0.0)) for bits in (2, 6, 7, 8)]
AT_THE_END += [PublicSupport(0.5, Uniform(8)), PublicSupport(0.3, rescale=True)]


@pytest.mark.parametrize("codec", [*CODECS, *AT_THE_END], ids=repr)
def test_what_is_encoded_at_the_end_of_float32_is_decoded(codec):
    if codec == RandomMask(0.5, RandomMask(0.5, Identity())):
        return  # what the inner one scales up is beyond what the outer one sees
    reading = replace(CONTEXT, start=normal(SPACE, 6), before=normal(SPACE, 7))
    for make, ctx in product(LARGEST_NUMBERS.values(), (CONTEXT, reading) if codec.reads else (CONTEXT,)):
        try:
            parts = codec.encode(make(SPACE), SPACE, ctx)
        except ValueError as error:
            assert not isinstance(codec, NEVER_REFUSING), error
            continue
        came = wire.unpack(wire.pack(header(codec, ctx=ctx), parts), header(codec, ctx=ctx), codec.layout(SPACE))
        assert torch.isfinite(codec.decode(came, SPACE, ctx)).all()


@every_codec
def test_encode_is_pure(codec):
    x = normal(LARGE)
    before = x.clone()
    first = all_bits(codec.encode(x, LARGE, CONTEXT))
    torch.manual_seed(1)
    np.random.default_rng().random()
    other = normal(LARGE)
    assert all_bits(codec.encode(other, LARGE, CONTEXT)) == first
    assert torch.equal(x, before)
    assert all_bits(codec.encode(x.clone().requires_grad_().detach(), LARGE, CONTEXT)) == first


@every_codec
def test_a_delta_of_another_type_is_encoded_as_its_float32(codec):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        x = normal(SPACE).to(dtype)
        expected = all_bits(codec.encode(x.float(), SPACE, CONTEXT))
        assert all_bits(codec.encode(x.repeat_interleave(2)[::2], SPACE, CONTEXT)) == expected


@contextmanager
def torch_defaults(device, dtype):
    """Another device and type of what torch makes without being told."""
    before = torch.get_default_device(), torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(before[0])
        torch.set_default_dtype(before[1])


@every_codec
@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.float64)], ids=str)
def test_torchs_defaults_change_nothing(codec, device, dtype):
    x, ctx = normal(SPACE), replace(CONTEXT, start=normal(SPACE, 6), before=normal(SPACE, 7))
    expected = there_and_back(codec, x, ctx=ctx)
    with torch_defaults(device, dtype):
        parts, sketch = codec.encode(x, SPACE, ctx), codec.sketch(SPACE, ctx)
        made = [codec.decode(parts, SPACE, ctx)] + ([sketch.spread(sketch.values(parts))] if sketch else [])
    for y in made:
        assert (y.device.type, y.dtype) == ("cpu", torch.float32) and torch.equal(y, expected)


@every_codec
def test_nothing_stays_nothing(codec):
    assert not there_and_back(codec, torch.zeros(SPACE.numel)).any()
    assert not there_and_back(codec, -torch.zeros(SPACE.numel)).any()


@pytest.mark.parametrize("codec", [c for c in CODECS if "per_slot" not in repr(c)], ids=repr)
def test_spaces_of_any_sizes(codec):
    for shapes in ([(1,)], [()], [(0, 3)], [(8,), (16, 2)], [(9,), (0,), (1, 1), (7,)]):
        if codec in (Ranking(), Lottery()) and shapes == [(0, 3)]:
            continue
        space = Space(tuple(Slot(f"{i}", shape, "a") for i, shape in enumerate(shapes)))
        parts = codec.encode(normal(space), space, CONTEXT)
        payload = wire.pack(header(codec, space), parts)
        came = wire.unpack(payload, header(codec, space), codec.layout(space))
        assert all_bits(came) == all_bits(parts), shapes
        assert codec.decode(came, space, CONTEXT).shape == (space.numel,), shapes


@pytest.mark.parametrize("codec", [c for c in CODECS if "Clip" not in repr(c)], ids=repr)
def test_scaling_commutes_where_nothing_is_clipped(codec):
    x = normal(SPACE)
    plain = there_and_back(codec, x)
    for factor in (2.0, 16.0, 0.125):
        assert torch.equal(there_and_back(codec, x * factor), plain * factor), factor


@every_codec
def test_linear_means_linear(codec):
    assert codec.linear == (codec in LINEAR)
    if codec.linear:
        a, b = normal(SPACE, 1), normal(SPACE, 2)
        pa, pb = (codec.encode(x, SPACE, CONTEXT) for x in (a, b))
        summed = {name: Numbers(pa[name].values + pb[name].values) for name in pa}
        apart = there_and_back(codec, a) + there_and_back(codec, b)
        assert torch.allclose(codec.decode(summed, SPACE, CONTEXT), apart, rtol=1e-6, atol=1e-6)
        assert torch.allclose(there_and_back(codec, a + b), apart, rtol=1e-6, atol=1e-6)


@every_codec
def test_unbiased_means_unbiased(codec):
    assert codec.unbiased == (codec in UNBIASED)
    if not codec.unbiased:
        return
    x, rounds = normal(SPACE), 800
    seen = torch.stack([there_and_back(codec, x, ctx=Context(5, r, 2)) for r in range(1, rounds + 1)]).double()
    spread = (seen.amax(0) - seen.amin(0)).max()
    # Bernstein: a normal part, and one for events too rare to have shown in the sample's deviation.
    allowed = 4.5 * seen.std(0) / rounds**0.5 + 10 * spread / rounds
    assert ((seen.mean(0) - x).abs() <= allowed).all()
    assert allowed.max() < x.abs().max() * (0.5 if isinstance(codec, MASKS) else 0.2)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("bits", [2, 8])
def test_clients_round_independently(bits):
    x, codec = normal(SPACE), Uniform(bits, stochastic=True)
    first, second = (there_and_back(codec, x, ctx=Context(5, 1, client)) for client in (1, 2))
    assert not torch.equal(first, second)


def test_stochastic_rounding_moves_no_coordinate_that_needs_no_rounding():
    space = Space((Slot("a", (1_000_000,), "lora_A"),))
    x = torch.zeros(space.numel)
    x[0] = 1.0
    for number in (9, 15, 18):
        assert torch.equal(there_and_back(Uniform(8, True), x, space, Context(0, number, 1)), x)


# A mask draws other coordinates of what it rounded, or scales up again, as an unbiased projection does; TopK fits its
# table, which slots share, again, DeadZone its step, and QSGD measures the norm of what it rounded; sums and cosine
# transforms round anew each time, and factors are rounded to float16: by how little is tested with them. What
# quantisation made longer than the bound is clipped again.
LOSSES = (
    "Budget",
    "Lottery",
    "Mask",
    "TopK",
    "DCT",
    "rescale=True",
    "Rotated",
    "DeadZone",
    "QSGD",
    "SRHT",
    "Ferret",
    "LowRank",
)
LOSING = [c for c in CODECS if any(name in repr(c) for name in LOSSES) or ("Clip" in repr(c) and "Uniform" in repr(c))]


@pytest.mark.parametrize("codec", [c for c in CODECS if c not in LOSING], ids=repr)
def test_what_was_decoded_encodes_without_further_loss(codec):
    once = there_and_back(codec, normal(SPACE))
    twice = there_and_back(codec, once)
    assert torch.allclose(twice, once, rtol=1e-6, atol=0)
    if isinstance(codec, Identity | LogByte | Ternary):
        assert torch.equal(twice, once)


@pytest.mark.parametrize("codec", [*CODECS, *FEEDBACKS], ids=repr)
def test_repr_is_the_expression(codec):
    parsed = expressions.parse(repr(codec), Codec | ErrorFeedback, {**NAMES, **PLUGINS})
    assert parsed == codec and hash(parsed) == hash(codec) and repr(parsed) == repr(codec)
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert sum(codec == other for other in [*CODECS, *FEEDBACKS]) == 1


def test_a_plug_in_is_named_by_its_path():
    assert codecs.parse("ErrorFeedback(tests.codecs.examples.Lottery(0.5))", imports=True).codec == Lottery(0.5)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_non_finite_delta_is_refused_at_one_end_or_the_other(codec):
    everywhere = slice(None)
    for value, where in product((float("nan"), float("inf"), -float("inf")), (3, everywhere)):
        x = normal(SPACE)
        x[everywhere if "Lottery" in repr(codec) else where] = value
        with pytest.raises((ValueError, PayloadError)) as caught:
            wire.unpack(wire.pack(header(codec), codec.encode(x, SPACE, CONTEXT)), header(codec), codec.layout(SPACE))
        assert not isinstance(caught.value, PayloadError) or caught.value.defect == Defect.NON_FINITE, (value, where)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Identity("float64"), "dtype must be one of float32, float16, bfloat16, got 'float64'"),
        (lambda: Ternary(density=0), r"density must lie in \(0, 1\], got 0"),
        (lambda: Ternary(density=1.1), r"density must lie in \(0, 1\], got 1.1"),
        (lambda: Ternary(density=float("nan")), r"density must lie in \(0, 1\], got nan"),
        (lambda: Ternary(scale="max"), "scale must be 'mean', 'norm' or 'unbiased', got 'max'"),
        (lambda: Ternary(threshold="row"), "threshold must be 'slot' or 'global', got 'row'"),
        (lambda: Uniform(bits=1), "bits must be an integer from 2 to 8, got 1"),
        (lambda: Uniform(bits=9), "bits must be an integer from 2 to 8, got 9"),
        (lambda: Uniform(bits=4.0), "bits must be an integer from 2 to 8, got 4.0"),
        (lambda: Uniform(bits=True), "bits must be an integer from 2 to 8, got True"),
        (lambda: Clip(norm=0), "norm must be positive and finite, got 0"),
        (lambda: Clip(norm=float("nan")), "norm must be positive and finite, got nan"),
        (lambda: Clip(norm=float("inf")), "norm must be positive and finite, got inf"),
        (lambda: ErrorFeedback(Ternary(), decay=1.5), r"decay must lie in \[0, 1\], got 1.5"),
        (lambda: ErrorFeedback(Ternary(), decay=-0.1), r"decay must lie in \[0, 1\], got -0.1"),
        (lambda: ErrorFeedback(ErrorFeedback(Ternary())), r"ErrorFeedback wraps a codec, got ErrorFeedback\("),
        (lambda: ErrorFeedback(Clip(1.0)), r"ErrorFeedback wraps a codec, got Clip\(norm=1.0\)"),
        (lambda: chain(), "the last step of a chain must be a codec, got None"),
        (lambda: chain(Clip(1.0)), r"the last step of a chain must be a codec, got Clip\(norm=1.0\)"),
        (lambda: chain(Ternary(), Identity()), r"every step .* but the last must be a transform, got Ternary\("),
        (lambda: chain(3, Identity()), "every step .* but the last must be a transform, got 3"),
        (lambda: per_slot({"a": Clip(1.0)}, default=Identity()), r"a codec for 'a', got Clip\(norm=1.0\)"),
        (lambda: per_slot({}, default=None), "a codec for 'default', got None"),
        (lambda: per_slot({3: Identity()}, default=Identity()), "a mapping of patterns to codecs, got {3: "),
        (lambda: per_slot([("a", Identity())], default=Identity()), r"a mapping of patterns to codecs, got \["),
        (lambda: per_slot({}, default=FEEDBACKS[0]), r"a codec for 'default', got ErrorFeedback\("),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("codec", [Ternary(), Uniform()], ids=repr)
@without_type_checks()
def test_parts_of_other_kinds_are_no_parts(codec):
    wrong = {name: Numbers(np.zeros(SPACE.numel, np.float32)) for name in codec.layout(SPACE)}
    with pytest.raises(TypeError, match=r"part .\w+.: expected (Plane|Symbols), got Numbers"):
        codec.decode(wrong, SPACE, CONTEXT)
