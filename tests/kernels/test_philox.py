"""Philox agrees with the known answers of Random123 (kat_vectors) and is a function of its position alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.kernels import philox_block, philox_words

F = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([F] * 4, [F] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], answer: str) -> None:
    block = philox_block(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert " ".join(f"{w:08x}" for w in block) == answer


@given(st.integers(0, 500), st.integers(0, 500))
def test_any_window_of_a_stream_is_the_same(start: int, n: int) -> None:
    whole = philox_words(1, 2, 3, 4, 5, 0, 1000)
    part = philox_words(1, 2, 3, 4, 5, start, n)
    assert part.dtype == np.uint32
    assert np.array_equal(part, whole[start : start + n])


def test_word_is_a_lane_of_its_block() -> None:
    blocks = [philox_block(np.array([i, 7, 8, 9], np.uint32), np.array([5, 6], np.uint32)) for i in range(3)]
    assert np.array_equal(philox_words(5, 6, 7, 8, 9, 0, 12), np.concatenate(blocks))


def test_every_key_and_counter_word_matters() -> None:
    streams = {philox_words(*(int(i == j) for i in range(5)), 0, 4).tobytes() for j in range(6)}
    assert len(streams) == 6


def test_the_end_of_a_stream() -> None:
    assert philox_words(0, 0, 0, 0, 0, (1 << 34) - 3, 3).size == 3
    for start, n in ((-1, 4), (0, -1), ((1 << 34) - 3, 4)):
        with pytest.raises(ValueError, match="start, n"):
            philox_words(0, 0, 0, 0, 0, start, n)
    with pytest.raises(ValueError, match="key0"):
        philox_words(1 << 32, 0, 0, 0, 0, 0, 1)
