"""Texts from outside, made safe to print."""

import unicodedata

_LONGEST = 500
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def one_line(text: object, longest: int = _LONGEST) -> str:
    r"""The first line of a text, cut, with what could steer a terminal or turn a line around written as escapes.

    What follows a first line is a traceback, which a run's journal has and others need not.

    Args:
        text: of whoever sent it.
        longest: characters.

    >>> one_line("late\x1b[2J, again\nTraceback: ...")
    'late\\x1b[2J, again'
    """
    lines = str(text)[: 10 * longest].strip().splitlines()
    return "".join(map(_visible, lines[0]))[:longest] if lines else ""


def _visible(character: str) -> str:
    if unicodedata.category(character) in _UNPRINTABLE:
        return character.encode("unicode_escape").decode()
    return character
