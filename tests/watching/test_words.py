"""Texts from outside, made safe to print."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.watching.words import one_line
from tests.watching.story import HOSTILE


@given(st.text() | st.sampled_from(HOSTILE))
def test_any_text_becomes_one_short_printable_line(text: str) -> None:
    line = one_line(text)
    assert len(line) <= 500
    assert line == "" or len(line.splitlines()) == 1
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    line.encode()
    assert one_line(line) == line.strip()


@pytest.mark.parametrize("text", ["ann", "Zürich, 東京", "late: round 3 is closed", "[red]"])
def test_an_ordinary_text_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text


def test_what_follows_the_first_line_is_left_out() -> None:
    assert one_line("site 'ann' failed:\nTraceback ...\nKeyError: 'a patient'") == "site 'ann' failed:"
