"""Strategies: how many deltas become one."""

from typing import Any

from fedpeft import expressions
from fedpeft.strategies.base import Update, Fold, Strategy, Summands
from fedpeft.strategies.mean import Mean
from fedpeft.strategies.sign import SignElection

NAMES: dict[str, Any] = {"Mean": Mean, "SignElection": SignElection}

__all__ = [*NAMES, "Update", "Fold", "Strategy", "Summands", "parse"]


def parse(text: str, *, imports: bool = False) -> Strategy:
    """The strategy that an expression names.

    >>> parse("SignElection(elect='count')")
    SignElection(elect='count', average='agreeing')

    Raises:
        ConfigError: the text is no such expression.
    """
    kind: Any = Strategy
    return expressions.parse(text, kind, NAMES, imports=imports)
