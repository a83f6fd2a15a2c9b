"""Strategies: how many deltas become one."""

from typing import Any

from fedpeft import expressions
from fedpeft.strategies.base import Additive, Broadcast, Context, Fold, Strategy, Summands, Update
from fedpeft.strategies.mean import Mean
from fedpeft.strategies.sign import SignElection

NAMES: dict[str, Any] = {"Mean": Mean, "SignElection": SignElection}

__all__ = [
    "Additive",
    "Broadcast",
    "Context",
    "Fold",
    "Mean",
    "SignElection",
    "Strategy",
    "Summands",
    "Update",
    "parse",
]


def parse(text: str, *, imports: bool = False) -> Strategy:
    """The strategy that an expression names.

    >>> parse("SignElection(elect='count')")
    SignElection(elect='count', average='agreeing')

    Raises:
        ConfigError: the text is no such expression.
    """
    strategy: Strategy = expressions.parse(text, Strategy, NAMES, imports=imports)
    return strategy
