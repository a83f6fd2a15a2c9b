"""Sources of examples, and how sites share them."""

from typing import Any

from fedpeft import expressions
from fedpeft.data.base import (
    Corpus,
    Example,
    Partition,
    SiteIndices,
    SiteSummary,
    Source,
    describe,
    hold_out,
)
from fedpeft.data.hub import HuggingFaceDataset
from fedpeft.data.local import LocalFile
from fedpeft.data.partition import IID, ByGroup, ByLabel, Dirichlet
from fedpeft.data.share import Share
from fedpeft.data.stdlib_docs import StdlibDocs

SOURCES: dict[str, Any] = {
    "HuggingFaceDataset": HuggingFaceDataset,
    "LocalFile": LocalFile,
    "Share": Share,
    "StdlibDocs": StdlibDocs,
}
PARTITIONS: dict[str, Any] = {"IID": IID, "ByGroup": ByGroup, "ByLabel": ByLabel, "Dirichlet": Dirichlet}

__all__ = [
    "IID",
    "ByGroup",
    "ByLabel",
    "Corpus",
    "Dirichlet",
    "Example",
    "HuggingFaceDataset",
    "LocalFile",
    "Partition",
    "Share",
    "SiteIndices",
    "SiteSummary",
    "Source",
    "StdlibDocs",
    "describe",
    "hold_out",
    "parse_partition",
    "parse_source",
]


def parse_source(text: str, *, imports: bool = False) -> Source:
    """The data source that an expression names.

    Raises:
        ConfigError: the text is no such expression.
    """
    source: Source = expressions.parse(text, Source, SOURCES | PARTITIONS, imports=imports)
    return source


def parse_partition(text: str, *, imports: bool = False) -> Partition:
    """The partition that an expression names.

    Raises:
        ConfigError: the text is no such expression.
    """
    partition: Partition = expressions.parse(text, Partition, PARTITIONS, imports=imports)
    return partition
