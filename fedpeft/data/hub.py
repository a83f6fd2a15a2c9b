"""Examples from the Hugging Face hub, or from a folder in one of its formats."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.data.base import Corpus, Source, hold_out
from fedpeft.data.columns import Columns
from fedpeft.data.fields import among, check_number, check_text
from fedpeft.errors import DataError


@dataclass(frozen=True)
class HuggingFaceDataset(Source):
    """Rows of a data set that the `datasets` package reads: `pip install 'fedpeft[data]'`.

    A folder written by `save_to_disk` is read with `load_from_disk`; anything else (a hub id, a folder of
    JSONL, CSV or Parquet) goes to `load_dataset`. A `ClassLabel` column keeps its names and their order.

    Args:
        path: id on the hub, or a folder.
        name: configuration of the data set ("plus" of "clinc_oos").
        text: column of the text.
        label: column of the class; None for language modelling.
        prompt: column of the masked text before `text`.
        group: column that says to which site an example belongs.
        train_split: for `load_dataset` also a slice, as "train[:1000]".
        test_split: None to hold out `test_fraction` of the training split instead.
        test_fraction: share of each label held out where there is no `test_split`, in [0, 1).
        revision: commit, tag or branch on the hub; name a commit to get the same data for ever.
    """

    path: str
    name: str | None = None
    text: str = "text"
    label: str | None = None
    prompt: str | None = None
    group: str | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    test_fraction: float = 0.1
    revision: str | None = None

    def __post_init__(self) -> None:
        for name in ("path", "text", "train_split"):
            check_text(self, name)
        for name in ("name", "label", "prompt", "group", "test_split", "revision"):
            check_text(self, name, optional=True)
        check_number(self, "test_fraction", 0, 1)

    def _columns(self) -> Columns:
        return Columns(self.text, self.label, self.prompt, self.group)

    def load(self, seed: int) -> Corpus:
        """The examples of both splits; `seed` decides which are held out where there is no test split."""
        rows = self._table(self.train_split)
        names = self._class_names(rows)
        columns, origin = self._columns(), f"{self.path}, {self.train_split} row"
        train, labels = columns.read(_numbered(rows, columns, names, origin), origin, names)
        if self.test_split is None:
            train, test = hold_out(train, self.test_fraction, seed)
        else:
            rows, origin = self._table(self.test_split), f"{self.path}, {self.test_split} row"
            names = self._class_names(rows)
            test, _ = columns.read(_numbered(rows, columns, names, origin), origin, labels)
        return Corpus(self.name or Path(self.path).name, train, test, labels)

    def _table(self, split: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise DataError(f"{self.path}: needs the datasets package: pip install 'fedpeft[data]'") from error
        try:
            if _saved_to_disk(Path(self.path)):
                table = _split_of(datasets.load_from_disk(self.path), split, self.path)
            else:
                table = datasets.load_dataset(self.path, self.name, split=split, revision=self.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{self.path}, split {split!r}: cannot be loaded: {cause}") from error
        for column in self._columns().names:
            if column not in table.column_names:
                raise DataError(
                    f"{self.path}, split {split!r}: no column {column!r}; {among(column, table.column_names)}"
                )
        return table.select_columns(sorted(set(self._columns().names)))

    def _class_names(self, table: Any) -> tuple[str, ...] | None:
        names = getattr(table.features[self.label], "names", None) if self.label else None
        return None if names is None else tuple(names)


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _split_of(saved: Any, split: str, path: str) -> Any:
    if not isinstance(saved, dict):
        if split == "train":
            return saved
        raise DataError(
            f"{path}: one table was saved, without splits; expected train_split='train' and test_split=None, "
            f"got {split!r}"
        )
    if split not in saved:
        raise DataError(f"{path}: no split {split!r}; {among(split, list(saved))}")
    return saved[split]


def _numbered(
    table: Any, columns: Columns, names: tuple[str, ...] | None, origin: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in enumerate(table):
        if names is not None:
            index = row[columns.label]
            if index is None or not 0 <= index < len(names):
                raise DataError(
                    f"{origin} {number}, column {columns.label!r}: expected a class in [0, {len(names)}), "
                    f"got {index}; the labels of some test splits are withheld, name another test_split"
                )
            row[columns.label] = names[index]
        yield number, row
