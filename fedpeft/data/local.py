"""Examples from a file of the user's own."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fedpeft.data.base import Corpus, Source, hold_out
from fedpeft.data.columns import Columns
from fedpeft.data.fields import check_number, check_text
from fedpeft.errors import DataError

Rows: TypeAlias = Iterator[tuple[int, Mapping[str, Any]]]
_MOST_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class LocalFile(Source):
    """Rows of a JSON, JSONL, CSV or TSV file, UTF-8, by its suffix.

    JSON is a list of objects or one object of equally long columns; CSV and TSV have a header. Labels may be
    strings or integers; classes are numbered in sorted order. All but JSON is read line by line.

    Args:
        path: ends in .json, .jsonl, .ndjson, .csv or .tsv.
        text: column of the text.
        label: column of the class; None for language modelling.
        prompt: column of the masked text before `text`.
        group: column that says to which site an example belongs.
        test_path: file of the test examples, with the same columns.
        test_fraction: share of each label held out for testing where there is no `test_path`, in [0, 1).
    """

    path: str
    text: str = "text"
    label: str | None = None
    prompt: str | None = None
    group: str | None = None
    test_path: str | None = None
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("path", "text"):
            check_text(self, name)
        for name in ("label", "prompt", "group", "test_path"):
            check_text(self, name, optional=True)
        check_number(self, "test_fraction", 0, 1)
        for name in ("path", "test_path"):
            path = getattr(self, name)
            if path is not None and Path(path).suffix.lower() not in _READERS:
                raise ValueError(
                    f"LocalFile.{name}: expected a file that ends in {', '.join(_READERS)}, got {path!r} "
                    "(HuggingFaceDataset reads other formats)"
                )

    def _columns(self) -> Columns:
        return Columns(self.text, self.label, self.prompt, self.group)

    def load(self, seed: int) -> Corpus:
        """The examples of the file; `seed` decides which are held out."""
        train, labels = self._columns().read(_rows(self.path), _origin(self.path))
        if self.test_path is None:
            train, test = hold_out(train, self.test_fraction, seed)
        else:
            test, _ = self._columns().read(_rows(self.test_path), _origin(self.test_path), labels)
        return Corpus(Path(self.path).stem, train, test, labels)


def _origin(path: str) -> str:
    return f"{path}, {'row' if Path(path).suffix.lower() == '.json' else 'line'}"


def _rows(path: str) -> Rows:
    try:
        yield from _READERS[Path(path).suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _lines(path: str) -> Iterator[str]:
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: expected UTF-8, got byte 0x{raw[error.start]:02x} at position "
                    f"{error.start}; save the file as UTF-8"
                ) from error
            yield line.removeprefix("\ufeff") if number == 1 else line


def _jsonl(path: str) -> Rows:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            row = _parsed(line, f"{path}, line {number}")
            yield number, _object(row, f"{path}, line {number}")


def _json(path: str) -> Rows:
    size = Path(path).stat().st_size
    if size > _MOST_JSON_BYTES:
        raise DataError(
            f"{path}: a JSON file is read whole, expected at most {_MOST_JSON_BYTES} bytes, got {size}; use JSONL"
        )
    content = _parsed("".join(_lines(path)), path)
    if isinstance(content, list):
        for number, row in enumerate(content, 1):
            yield number, _object(row, f"{path}, row {number}")
        return
    columns = _object(content, path, "a list of objects or an object of columns")
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise DataError(f"{path}, column {name!r}: expected a list, got {type(cells).__name__}")
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: expected columns of one length, got {lengths}")
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield number, dict(zip(columns, cells, strict=True))


def _separated(path: str, delimiter: str) -> Rows:
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}, line 1: expected a header of distinct names, got {header}")
        yield from _numbered(reader, header, path)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid {Path(path).suffix[1:]}: {error}") from error


def _numbered(reader: Iterable[list[str]], header: list[str], path: str) -> Rows:
    for cells in reader:
        number: int = reader.line_num  # type: ignore[attr-defined]
        if cells and len(cells) != len(header):
            raise DataError(f"{path}, line {number}: expected {len(header)} cells as in the header, got {len(cells)}")
        if cells:
            yield number, dict(zip(header, cells, strict=True))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: JSON out of bounds: {error}") from error


def _object(value: Any, where: str, expected: str = "an object") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected {expected}, got {type(value).__name__}")
    return value


_READERS: dict[str, Callable[[str], Rows]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
}
