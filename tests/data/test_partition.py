"""What sets each partition apart."""

import numpy as np
import pytest

from fedpeft.data import IID, ByGroup, ByLabel, Dirichlet, Example, describe

EXAMPLES = [Example(str(i), i % 10, group=f"domain {i % 10 // 4}") for i in range(2000)]


def counts(partition, sites, seed=0, examples=EXAMPLES):
    return np.array([s.label_counts for s in describe(examples, partition.split(examples, sites, seed))])


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(part) for part in IID().split(EXAMPLES, 7, seed=0)]
    assert max(sizes) - min(sizes) <= 1


def test_the_smallest_alpha_gives_each_label_to_one_site():
    table = counts(Dirichlet(0.01, min_per_site=1), 4)
    assert (table.max(axis=0) > 0.95 * table.sum(axis=0)).mean() >= 0.9


def test_the_largest_alpha_is_nearly_uniform():
    assert abs(counts(Dirichlet(1000.0), 4) - 50).max() <= 8


def test_alpha_orders_the_skew():
    spread = [np.mean([counts(Dirichlet(alpha), 5, seed).std() for seed in range(8)]) for alpha in (0.05, 0.5, 5.0)]
    assert spread[0] > spread[1] > spread[2]


def test_proportions_have_the_moments_of_a_dirichlet():
    # One label, alpha 0.5, n = 4 sites: mean 1/4, variance (1/4)(3/4) / (4 * 0.5 + 1) = 1/16.
    same = [Example("a", 0)] * 1000
    shares = np.array([counts(Dirichlet(0.5, 1), 4, seed, same)[:, 0] / 1000 for seed in range(800)])
    assert abs(shares.mean(axis=0) - 0.25).max() < 0.04
    assert abs(shares.var(axis=0) - 0.0625).max() < 0.012


def test_rare_labels_favour_no_site():
    examples = [Example("common", 0)] * 30 + [Example("rare", 1)]
    found = sum(counts(Dirichlet(10.0, 1), 3, seed, examples)[:, 1] for seed in range(300))
    assert found.sum() == 300 and found.min() > 65


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.5])
@pytest.mark.parametrize("sites", [10, 50])
def test_every_site_has_its_minimum(alpha, sites):
    parts = Dirichlet(alpha, min_per_site=40).split(EXAMPLES, sites, seed=1)
    assert min(map(len, parts)) >= 40


def test_a_site_is_topped_up_with_few_labels():
    table = counts(Dirichlet(1e-6, min_per_site=20), 12)
    assert ((table > 0).sum(axis=1) <= 4).sum() >= 10


def test_the_split_is_the_same_on_every_platform():
    assert [len(part) for part in Dirichlet(0.5).split(EXAMPLES, 6, seed=0)] == [198, 275, 500, 308, 318, 401]
    assert IID().split(EXAMPLES[:8], 2, seed=0) == ((0, 1, 5, 7), (2, 3, 4, 6))


def test_groups_go_whole_to_sites_the_largest_first():
    examples = [Example("a", group=g) for g in "aaabbbbbccdd"]
    assert [len(p) for p in ByGroup().split(examples, 4, 0)] == [5, 3, 2, 2]
    assert ByGroup().split(examples, 4, 0)[2] == (8, 9)
    three = ByGroup().split(examples, 3, 0)
    assert [{examples[i].group for i in part} for part in three] == [{"b"}, {"a"}, {"c", "d"}]


def test_no_two_sites_share_a_label():
    assert ((counts(ByLabel(), 3) > 0).sum(axis=0) == 1).all()
    ungrouped = [Example("a", i) for i in (0, 5, 9, 2)]
    assert ByLabel().split(ungrouped, 2, 0) == ((0, 3), (1, 2))


def test_labels_of_a_domain_stay_together():
    examples = [Example("a", label, group=group) for label, group in enumerate(["x", "y", "x", "y"])]
    assert ByLabel().split(examples, 2, 0) == ((0, 2), (1, 3))


@pytest.mark.parametrize(
    ("partition", "examples", "sites", "message"),
    [
        (
            Dirichlet(min_per_site=8),
            EXAMPLES[:20],
            3,
            "3 sites need 24 examples, got 20; ask for fewer sites or",
        ),
        (
            Dirichlet(),
            [Example("a")] * 20,
            2,
            r"Dirichlet\(.*example 0 has no label; name the source's label col",
        ),
        (ByLabel(), [Example("a")] * 2, 2, "example 0 has no label"),
        (ByLabel(), EXAMPLES, 11, "11 sites need as many labels, got 10; ask for fewer sites"),
        (
            ByGroup(),
            [Example("a", group="g"), Example("b")],
            1,
            "example 1 has no group; name the source's group",
        ),
        (ByGroup(), EXAMPLES, 4, "4 sites need as many groups, got 3; ask for fewer sites"),
    ],
)
def test_what_cannot_be_split_says_the_way_out(partition, examples, sites, message):
    with pytest.raises(ValueError, match=message):
        partition.split(examples, sites, seed=0)
