"""Rows of a table as examples: what `LocalFile` and `HuggingFaceDataset` have in common."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.data.base import Example
from fedpeft.data.fields import among
from fedpeft.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what.

    Args:
        text: the example's text.
        label: its class, a string or an integer; None if it has none.
        prompt: the masked text before it; None if there is none.
        group: the site that it belongs to; None if the data does not say.
    """

    text: str
    label: str | None = None
    prompt: str | None = None
    group: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.text, self.label, self.prompt, self.group) if name is not None]

    def read(
        self,
        rows: Iterable[tuple[int, Mapping[str, Any]]],
        origin: str,
        labels: tuple[str, ...] | None = None,
    ) -> tuple[tuple[Example, ...], tuple[str, ...]]:
        """Examples of numbered rows, and the label names by index.

        Args:
            rows: each with the number by which a user finds it.
            origin: what stands before that number in a message, as in "reviews.csv, line".
            labels: the names to use; None to take those that occur, sorted (as numbers if all are integers).

        Raises:
            DataError: there is no row, or one lacks a column, or holds a value of the wrong kind in it.
        """
        read = []
        for number, row in rows:
            where = f"{origin} {number}"
            text = _cell(row, self.text, where)
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{where}, column {self.text!r}: expected text, got {_shown(text)}")
            prompt = None if self.prompt is None else _cell(row, self.prompt, where)
            if not isinstance(prompt, str | None) or (prompt is None and self.prompt is not None):
                raise DataError(f"{where}, column {self.prompt!r}: expected text, got {_shown(prompt)}")
            group = None if self.group is None else _name(row, self.group, where)
            label = None if self.label is None else _name(row, self.label, where)
            read.append((number, text, label, prompt, group))
        if not read:
            raise DataError(f"{origin.rpartition(', ')[0]}: expected at least one row, got none")
        if labels is None:
            labels = _sorted_names({label for _, _, label, _, _ in read if label is not None})
        index = {name: i for i, name in enumerate(labels)}
        for number, _, label, _, _ in read:
            if label is not None and label not in index:
                raise DataError(
                    f"{origin} {number}, column {self.label!r}: label {label!r} is not one of the training "
                    f"labels; {among(label, list(labels))}"
                )
        examples = (
            Example(text, None if label is None else index[label], prompt, group)
            for _, text, label, prompt, group in read
        )
        return tuple(examples), labels


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}; {among(column, list(row))}")
    return row[column]


def _name(row: Mapping[str, Any], column: str, where: str) -> str:
    value = _cell(row, column, where)
    if not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where}, column {column!r}: expected a string or an integer, got {_shown(value)}")
    return str(value)


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
