"""How sites share the training examples."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.base import Example, Partition
from fedpeft.data.fields import check_count, check_number
from fedpeft.random import Purpose, Stream


@dataclass(frozen=True)
class IID(Partition):
    """Every site gets an equal share, drawn at random: sizes differ by at most one."""

    def assign(self, examples: Sequence[Example], sites: int, seed: int) -> NDArray[np.int64]:
        """Examples in random order, dealt round."""
        owner = np.empty(len(examples), dtype=np.int64)
        owner[Stream(seed, Purpose.PARTITION).permutation(len(examples))] = np.arange(len(examples)) % sites
        return owner


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each label is shared among the sites in proportions p ~ Dir(alpha): small alpha, skewed labels.

    The per-label variant of Yurochkin et al. 2019, arXiv 1905.12022, section 4, and Li et al. 2021,
    arXiv 2102.02079, section 4 ("p_k ~ Dir_N(beta)"); in Hsu et al. 2019, arXiv 1909.06335, it is each
    client that draws its mixture of labels, and all have one size. Two differences from Li et al.'s code:
    a site stays open when it has more than its share, and instead of drawing again until every site has
    its minimum, short sites are topped up, one example at a time, from the site that is then largest.
    Counts are rounded without bias (systematic sampling), so rare labels favour no site.

    Args:
        alpha: concentration, > 0; 0.01 gives each label to about one site, 1000 is nearly uniform.
        min_per_site: least number of examples at a site, at least 1.
    """

    alpha: float = 0.5
    min_per_site: int = 8

    def __post_init__(self) -> None:
        check_number(self, "alpha", 0, inf, open_low=True)
        check_count(self, "min_per_site", least=1)

    def assign(self, examples: Sequence[Example], sites: int, seed: int) -> NDArray[np.int64]:
        """Sites in the drawn proportions of each label, then topped up."""
        if sites * self.min_per_site > len(examples):
            raise ValueError(
                f"{self}: {sites} sites need {sites * self.min_per_site} examples, got {len(examples)}; "
                "ask for fewer sites or a smaller min_per_site"
            )
        owner = np.empty(len(examples), dtype=np.int64)
        for label, members in _by_label(examples, self).items():
            shuffled = members[Stream(seed, Purpose.PARTITION, 0, label).permutation(len(members))]
            bounds = np.cumsum(self._proportions(Stream(seed, Purpose.PARTITION, 1, label), sites))
            start = Stream(seed, Purpose.PARTITION, 3, label).uniform(1)[0]
            points = (np.arange(len(members)) + start) / len(members)
            owner[shuffled] = np.searchsorted(bounds[:-1], points, side="right")
        return self._topped_up(owner, examples, sites, seed)

    def _proportions(self, stream: Stream, sites: int) -> NDArray[np.float64]:
        shares = stream.gamma(self.alpha, sites)
        if not shares.sum():
            # Gammas of a tiny alpha all underflow; the limit of the Dirichlet is one site, drawn uniformly.
            chosen = int(sites * Stream(stream.seed, stream.purpose, 2, stream.client).uniform(1)[0])
            shares[chosen] = 1.0
        proportions: NDArray[np.float64] = shares / shares.sum()
        return proportions

    def _topped_up(
        self, owner: NDArray[np.int64], examples: Sequence[Example], sites: int, seed: int
    ) -> NDArray[np.int64]:
        sizes = np.bincount(owner, minlength=sites)
        rank = Stream(seed, Purpose.PARTITION, 4).permutation(len(owner))
        # Sorted by label, so that what a site is given is of few labels: the skew survives.
        order = np.array(sorted(range(len(owner)), key=lambda i: (examples[i].label, rank[i])))
        while sizes.min() < self.min_per_site:
            poor, rich = int(sizes.argmin()), int(sizes.argmax())
            owner[order[owner[order] == rich][0]] = poor
            sizes[poor] += 1
            sizes[rich] -= 1
        return owner


@dataclass(frozen=True)
class ByGroup(Partition):
    """Each site gets whole groups, as the data names them (the `group` column of a source).

    With as many sites as groups, site i is the i-th largest group (equal sizes by name). With fewer, the
    largest groups open the sites, and each further group, in that order, joins the site that is then
    smallest. The seed plays no part.
    """

    def assign(self, examples: Sequence[Example], sites: int, seed: int) -> NDArray[np.int64]:
        """The site of each example's group."""
        groups = [_group(example, number, self) for number, example in enumerate(examples)]
        counts = Counter(groups)
        if sites > len(counts):
            raise ValueError(f"{self}: {sites} sites need as many groups, got {len(counts)}; ask for fewer sites")
        sizes = [0] * sites
        site_of: dict[str, int] = {}
        for group in sorted(counts, key=lambda g: (-counts[g], g)):
            site_of[group] = sizes.index(min(sizes))
            sizes[site_of[group]] += counts[group]
        return np.array([site_of[group] for group in groups], dtype=np.int64)


@dataclass(frozen=True)
class ByLabel(Partition):
    """Each site gets labels that no other site has: labels in order, cut into blocks of equally many.

    The order is that of the label's index; where examples have groups, labels of one group (a domain of
    intents, say) stand together. This is the hardest label skew; in McMahan et al. 2017, arXiv 1602.05629,
    section 3, each client gets two shards of sorted digits, and two clients may share a digit. The seed plays
    no part.
    """

    def assign(self, examples: Sequence[Example], sites: int, seed: int) -> NDArray[np.int64]:
        """The site of each example's label."""
        by_label = _by_label(examples, self)
        if sites > len(by_label):
            raise ValueError(f"{self}: {sites} sites need as many labels, got {len(by_label)}; ask for fewer sites")
        domain = {
            label: Counter(examples[i].group or "" for i in members).most_common(1)[0][0]
            for label, members in by_label.items()
        }
        owner = np.empty(len(examples), dtype=np.int64)
        ordered = sorted(by_label, key=lambda label: (domain[label], label))
        for place, label in enumerate(ordered):
            owner[by_label[label]] = place * sites // len(ordered)
        return owner


def _by_label(examples: Sequence[Example], partition: Partition) -> dict[int, NDArray[np.int64]]:
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        if example.label is None:
            raise ValueError(
                f"{partition}: example {number} has no label; name the source's label column, or use IID()"
            )
        members[example.label].append(number)
    return {label: np.array(members[label], dtype=np.int64) for label in sorted(members)}


def _group(example: Example, number: int, partition: Partition) -> str:
    if example.group is None:
        raise ValueError(f"{partition}: example {number} has no group; name the source's group column, or use IID()")
    return example.group
