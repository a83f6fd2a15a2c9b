"""What holds for every source and every partition."""

import json
from collections import Counter
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from fedpeft import data
from fedpeft.data import (
    IID,
    ByGroup,
    ByLabel,
    Corpus,
    Dirichlet,
    Example,
    HuggingFaceDataset,
    LocalFile,
    Partition,
    Share,
    SiteSummary,
    Source,
    StdlibDocs,
    describe,
    hold_out,
)
from fedpeft.errors import DataError

EXAMPLES = [Example(f"text {i}", i * i % 7, group=f"group {i % 12}") for i in range(600)]
PARTITIONS = [IID(), Dirichlet(), Dirichlet(0.01), Dirichlet(1000.0, min_per_site=1), ByGroup(), ByLabel()]
SOURCES = [
    lambda folder: StdlibDocs(),
    lambda folder: StdlibDocs(modules=5, per_module=20, test_fraction=0.5, min_words=12),
    lambda folder: LocalFile(str(folder / "rows.jsonl"), label="label", group="group"),
    lambda folder: LocalFile(str(folder / "rows.jsonl"), prompt="group"),
    lambda folder: LocalFile(str(folder / "rows.jsonl"), label="label", test_path=str(folder / "rows.jsonl")),
]


@pytest.fixture(params=SOURCES, ids=range(len(SOURCES)))
def source(request, tmp_path):
    rows = ({"text": e.text, "label": e.label, "group": e.group} for e in EXAMPLES)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return request.param(tmp_path)


def test_every_public_class_is_held_to_the_laws():
    public = {v for v in vars(data).values() if isinstance(v, type) and issubclass(v, Source | Partition)}
    covered = {type(p) for p in PARTITIONS} | {StdlibDocs, LocalFile, HuggingFaceDataset, Share}
    assert public - covered == {Source, Partition}


@pytest.mark.parametrize(
    "thing",
    [*PARTITIONS, StdlibDocs(), LocalFile("a.csv", "t", label="l"), HuggingFaceDataset("a/b", "c")],
    ids=repr,
)
def test_repr_is_the_expression(thing):
    assert eval(repr(thing), vars(data)) == thing
    assert is_dataclass(thing) and thing.__dataclass_params__.frozen and hash(thing) is not None
    for field in fields(thing):
        assert isinstance(getattr(thing, field.name), str | int | float | None)


def test_a_source_is_deterministic_and_holds_out_what_the_seed_says(source):
    corpus = source.load(0)
    assert corpus.train and corpus.test and corpus == source.load(0)
    assert all(e.text.strip() for e in corpus.train + corpus.test)
    labels = {e.label for e in corpus.train}
    assert labels == (set(range(len(corpus.labels))) if corpus.labels else {None})
    if getattr(source, "test_path", None) is None:
        assert corpus.test != source.load(1).test
        assert not {e.text for e in corpus.train} & {e.text for e in corpus.test}
        share = len(corpus.test) / len(corpus.train + corpus.test)
        assert abs(share - source.test_fraction) < 0.01


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
@pytest.mark.parametrize("sites", [1, 2, 4])
def test_every_example_is_at_exactly_one_site(partition, sites):
    parts = partition.split(EXAMPLES, sites, seed=0)
    assert len(parts) == sites and all(parts)
    assert sorted(i for part in parts for i in part) == list(range(len(EXAMPLES)))
    assert all(list(part) == sorted(part) and type(part[0]) is int for part in parts)


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
def test_a_split_is_a_function_of_its_seed(partition):
    parts = partition.split(EXAMPLES, 4, seed=3)
    assert parts == partition.split(tuple(EXAMPLES), 4, seed=3)
    assert (parts == partition.split(EXAMPLES, 4, seed=4)) is isinstance(partition, ByGroup | ByLabel)


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
@pytest.mark.parametrize("sites", [0, -1, 601])
def test_an_impossible_number_of_sites_is_named(partition, sites):
    with pytest.raises(ValueError, match=rf"sites: expected 1 to 600.*got {sites}"):
        partition.split(EXAMPLES, sites, seed=0)


@pytest.mark.parametrize("partition", PARTITIONS, ids=repr)
def test_describe_counts_all(partition):
    summaries = describe(EXAMPLES, partition.split(EXAMPLES, 4, seed=0))
    assert sum(s.size for s in summaries) == len(EXAMPLES)
    assert all(sum(s.label_counts) == s.size for s in summaries)
    total = Counter(e.label for e in EXAMPLES)
    assert np.sum([s.label_counts for s in summaries], axis=0).tolist() == [total[i] for i in range(5)]


def test_describe_without_labels():
    assert describe([Example("a"), Example("b")], ((0,), (1,))) == (SiteSummary(1), SiteSummary(1))


class Wrong(Partition):
    def __init__(self, owner):
        self.owner = np.array(owner)

    def assign(self, examples, sites, seed):
        return self.owner


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ([0, 0, 0], r"sites \[1\] of 2 got no example; ask for fewer"),
        ([0, 2, 1], "expected a site in"),
        ([0, 1], "3 ex"),
    ],
)
def test_a_partition_of_others_is_held_to_the_contract(owner, message):
    with pytest.raises(ValueError, match=message):
        Wrong(owner).split(EXAMPLES[:3], 2, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StdlibDocs(modules=1), r"StdlibDocs\.modules: expected an integer of at least 2, got 1"),
        (lambda: StdlibDocs(modules="24"), r"StdlibDocs\.modules: .*got '24'"),
        (lambda: StdlibDocs(per_module=True), r"StdlibDocs\.per_module: .*got True"),
        (
            lambda: StdlibDocs(test_fraction=0),
            r"StdlibDocs\.test_fraction: expected a number in \(0, 1\), got 0",
        ),
        (lambda: StdlibDocs(min_words=0), r"StdlibDocs\.min_words"),
        (lambda: Dirichlet(alpha=0), r"Dirichlet\.alpha: expected a number in \(0, inf\), got 0"),
        (lambda: Dirichlet(alpha=float("nan")), r"Dirichlet\.alpha: .*got nan"),
        (lambda: Dirichlet(alpha="1"), r"Dirichlet\.alpha: .*got '1'"),
        (lambda: Dirichlet(min_per_site=0), r"Dirichlet\.min_per_site: .*at least 1, got 0"),
        (
            lambda: LocalFile("a.parquet"),
            r"LocalFile\.path: expected a file that ends in \.json.*got 'a.parquet'",
        ),
        (lambda: LocalFile("a.csv", test_path="b.txt"), r"LocalFile\.test_path: .*got 'b.txt'"),
        (lambda: LocalFile("a.csv", text=""), r"LocalFile\.text: expected a non-empty string, got ''"),
        (
            lambda: LocalFile("a.csv", label=3),
            r"LocalFile\.label: expected a non-empty string or None, got 3",
        ),
        (lambda: LocalFile("a.csv", test_fraction=1), r"LocalFile\.test_fraction: .*\[0, 1\), got 1"),
        (lambda: HuggingFaceDataset(""), r"HuggingFaceDataset\.path"),
        (lambda: HuggingFaceDataset("a", train_split=None), r"HuggingFaceDataset\.train_split: .*got None"),
        (lambda: Corpus("c", (), ()), "corpus 'c': expected at least one training example"),
        (
            lambda: Corpus("c", (Example("a", 2),), (), ("x", "y")),
            r"train\[0\]: expected a label in \[0, 2\), got 2",
        ),
        (
            lambda: Corpus("c", (Example("a"),), (Example("b", 0),)),
            r"test\[0\]: expected a label None.*got 0",
        ),
    ],
)
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_holding_out_is_stratified_and_exact_in_total():
    train, test = hold_out(EXAMPLES, 0.2, seed=0)
    assert len(test) == 120 and sorted(map(repr, train + test)) == sorted(map(repr, EXAMPLES))
    counts, held = Counter(e.label for e in EXAMPLES), Counter(e.label for e in test)
    assert all(abs(held[label] - counts[label] * 0.2) <= 1 for label in counts)
    rare = [Example(str(i), i) for i in range(50)]
    assert len(hold_out(rare, 0.1, seed=0)[1]) == 5
    assert hold_out(rare, 0.0, seed=0) == (tuple(rare), ())


def test_shares_are_the_sites_of_a_simulation(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": e.text, "label": e.label}) + "\n" for e in EXAMPLES))
    whole, partition = LocalFile(str(path), label="label"), Dirichlet()
    corpus = whole.load(3)
    rows = partition.split(corpus.train, 4, 3)
    for site, part in enumerate(rows, 1):
        asked = Share(whole, partition, site, 4)
        assert eval(repr(asked), vars(data)) == asked
        share = asked.load(3)
        assert share.train == tuple(corpus.train[i] for i in part)
        assert (share.test, share.labels) == (corpus.test, corpus.labels)


@pytest.mark.parametrize("site", [0, 5])
def test_a_share_is_of_one_of_the_sites(site):
    with pytest.raises(ValueError, match=rf"site must lie in \[1, 4\], got {site}"):
        Share(StdlibDocs(), IID(), site, 4)


def test_a_corpus_that_cannot_be_shared_so_says_why(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    with pytest.raises(DataError, match="sites: expected 1 to 3"):
        Share(LocalFile(str(path)), IID(), 1, 9).load(0)
