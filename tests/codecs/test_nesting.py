"""Codecs inside codecs inside codecs: each place draws what no other does, and both ends draw the same."""

from collections.abc import Callable, Iterator
from itertools import combinations, islice, product

import pytest
import torch

from fedpeft import wire
from fedpeft.codecs import (
    QSGD,
    SRHT,
    Clip,
    Codec,
    Context,
    Ferret,
    Fragments,
    Identity,
    MagnitudeMask,
    PowerSGD,
    PublicSupport,
    RandomMask,
    Rotated,
    Turns,
    Uniform,
    chain,
    per_slot,
)
from fedpeft.codecs.base import KEPT, MOST_GROUPS, PIECE, PROJECTIONS
from fedpeft.random import Stream
from tests.codecs.examples import SPACE, Lottery, all_bits, header, normal, without_type_checks

NOISY = Uniform(4, stochastic=True)
DRAWING = [NOISY, QSGD(), MagnitudeMask(0.5, 0.4), Rotated(2), SRHT(density=0.5), Ferret(density=0.5), Lottery()]
DRAWING += [RandomMask(0.5, NOISY), PublicSupport(0.5, NOISY)]
READING = [PublicSupport(0.5, NOISY, elect="last"), PowerSGD(1, NOISY)]
AROUND: list[Callable[[Codec], Codec]] = [
    lambda codec: per_slot({"*": codec}, default=Identity()),
    lambda codec: Fragments(codec, count=1),
    lambda codec: Turns(codec, ("*",)),
    lambda codec: chain(Clip(1e6), codec),
    lambda codec: RandomMask(0.9, codec),
    lambda codec: PublicSupport(0.9, codec),
    lambda codec: PowerSGD(2, codec),
]
WHOLE = AROUND[:4]  # what leaves slots whole, as codecs that read the adapter need
CONTEXT = Context(5, 3, 2, start=normal(SPACE, 1), before=normal(SPACE, 2))


def nested(codec: Codec, around: tuple[Callable[[Codec], Codec], ...]) -> Codec:
    """The codec inside others, twice beside each other: in the first layer and in all that is left."""
    for wrap in around:
        codec = wrap(codec)
    return per_slot({"layer.0.*": codec}, default=codec)


def nestings() -> Iterator[Codec]:
    for i, codec in enumerate([*DRAWING, *READING]):
        kinds = WHOLE if codec.reads else AROUND
        for depth in (2, 3, 4):
            for around in islice(product(kinds, repeat=depth), i, None, 197):
                # What is no slot any more cannot be read, so nothing that reads stands inside what picks.
                try:
                    yield nested(codec, around)
                except ValueError as error:
                    assert "reads whole slots" in str(error)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Stream, int, int]]:
    """Every stretch of words that is drawn from now on."""
    seen: list[tuple[Stream, int, int]] = []
    words = Stream.words

    def recorded(stream: Stream, n: int, start: int = 0):
        seen.append((stream, start, start + n))
        return words(stream, n, start)

    monkeypatch.setattr(Stream, "words", recorded)
    return seen


def test_every_nesting_goes_there_and_back_with_words_of_its_own_for_each_place(draws: list) -> None:
    x, folded = normal(SPACE), 0
    for codec in nestings():
        draws.clear()
        parts = codec.encode(x, SPACE, CONTEXT)
        encoding = list(draws)
        assert encoding, codec
        for (one, begin, end), (other, first, last) in combinations([d for d in encoding if d[2] > d[1]], 2):
            assert one != other or end <= first or last <= begin, (codec, one, begin, end, first, last)
        came = wire.unpack(wire.pack(header(codec), parts), header(codec), codec.layout(SPACE))
        assert all_bits(came) == all_bits(parts)
        draws.clear()
        decoded = codec.decode(came, SPACE, CONTEXT)
        assert decoded.shape == x.shape and torch.isfinite(decoded).all() and decoded.any()
        assert set(draws) <= set(encoding), codec
        folded += any(stream.seed != CONTEXT.seed for stream, _, _ in encoding)
    assert folded > 100


@pytest.mark.parametrize(
    "codec",
    [
        Fragments(per_slot({"lora_B": RandomMask(0.3)}, default=Identity()), count=2),
        Fragments(per_slot({"lora_B": PublicSupport(0.3, NOISY)}, default=Identity()), count=2),
        Turns(Fragments(RandomMask(0.3), count=2), ("*",)),
        Fragments(RandomMask(0.3, RandomMask(0.5)), count=2),
        Fragments(per_slot({"lora_A": Identity()}, default=PowerSGD(1, NOISY)), count=1),
    ],
    ids=repr,
)
def test_what_one_writes_is_carried_in_every_round(codec: Codec) -> None:
    x = normal(SPACE)
    layers = SPACE.subspace(slot.name for slot in SPACE.slots if "layer" in slot.name)
    x = SPACE.take(x, layers)
    for number in (1, 2, 3):
        ctx = Context(0, number, 1)
        assert codec.decode(codec.encode(x, layers, ctx), layers, ctx).any()


def test_no_two_places_have_one_stream() -> None:
    numbers = (1, 2, MOST_GROUPS, PROJECTIONS, PIECE, KEPT)
    seen = set()
    for depth in range(5):
        for path in product(numbers, repeat=depth):
            ctx = Context(7, 3, 2)
            for number in path:
                ctx = ctx.nested(number)
            assert ctx.part < 1 << 24 and (ctx.round, ctx.client) == (3, 2)
            seen |= {ctx.shared, ctx.private}
    assert len(seen) == 2 * sum(len(numbers) ** depth for depth in range(5))


def test_streams_of_two_levels_are_of_the_seed_itself() -> None:
    ctx = Context(7).nested(MOST_GROUPS).nested(KEPT)
    assert (ctx.seed, ctx.part) == (7, 1024 * MOST_GROUPS + KEPT)
    assert (ctx.nested(5).seed, ctx.nested(5).part) == (16411977982773913599, 5)


@without_type_checks()
def test_more_patterns_than_numbers_are_refused() -> None:
    rules = {f"s{i}": NOISY for i in range(MOST_GROUPS)}
    with pytest.raises(ValueError, match="per_slot: expected at most 1019 patterns, got 1020; one pattern with"):
        per_slot(rules, default=NOISY)
    rules.popitem()
    assert per_slot(rules, default=NOISY)
