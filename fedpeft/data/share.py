"""A source of one site's examples where several sites share one corpus."""

from dataclasses import dataclass

from fedpeft.data.base import Corpus, Partition, Source
from fedpeft.errors import DataError


@dataclass(frozen=True)
class Share(Source):
    """What one site of a simulation holds, for a site that is a process of its own.

    A deployment over `Share(source, partition, 1, 3)` to `Share(source, partition, 3, 3)` and a simulation of three
    sites over `source` and `partition` train on the same examples.

    Args:
        source: of all examples.
        partition: how sites share them.
        site: which of them, from 1.
        sites: how many.

    Raises:
        ValueError: there is no such site.
    """

    source: Source
    partition: Partition
    site: int
    sites: int

    def __post_init__(self) -> None:
        if not 1 <= self.site <= self.sites:
            raise ValueError(f"site must lie in [1, {self.sites}], got {self.site}")

    def load(self, seed: int) -> Corpus:
        """The whole corpus, of whose training examples only the site's are left.

        Raises:
            DataError: the data is missing, empty or malformed, or cannot be shared so.
        """
        whole = self.source.load(seed)
        try:
            rows = self.partition.split(whole.train, self.sites, seed)[self.site - 1]
        except ValueError as error:
            raise DataError(f"{self}: {error}") from None
        return Corpus(whole.name, tuple(whole.train[i] for i in rows), whole.test, whole.labels)
