"""Checks of the fields of sources and partitions, which come from a config as any literal."""

from difflib import get_close_matches
from math import isfinite
from typing import Any


def check_count(owner: object, name: str, least: int) -> None:
    """Raise ValueError unless the field is an integer of at least `least`."""
    value: Any = getattr(owner, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(owner, name, f"an integer of at least {least}")


def check_number(owner: object, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise ValueError unless the field is a finite number in [low, high); `open_low`: in (low, high)."""
    value: Any = getattr(owner, name)
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or not low <= value < high or (open_low and value == low):
        raise _wrong(owner, name, f"a number in {'(' if open_low else '['}{low}, {high})")


def check_text(owner: object, name: str, *, optional: bool = False) -> None:
    """Raise ValueError unless the field is a string with something in it, or None where that is allowed."""
    value: Any = getattr(owner, name)
    if (value is None and optional) or (isinstance(value, str) and value.strip()):
        return
    raise _wrong(owner, name, "a non-empty string" + (" or None" if optional else ""))


def among(name: str, present: list[str]) -> str:
    """What there is instead of `name`, and which of it is spelled most like it.

    >>> among("lable", ["text", "label"])
    "there are 'text', 'label'; did you mean 'label'?"
    """
    if not present:
        return "there are none"
    shown = ", ".join(repr(p) for p in present[:20]) + (", ..." if len(present) > 20 else "")
    near = get_close_matches(name, present, n=1)
    return f"there are {shown}" + (f"; did you mean {near[0]!r}?" if near else "")


def _wrong(owner: object, name: str, expected: str) -> ValueError:
    return ValueError(f"{type(owner).__name__}.{name}: expected {expected}, got {getattr(owner, name)!r}")
