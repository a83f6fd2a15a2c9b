"""The corpus that every Python has, on this Python."""

import sysconfig
from collections import Counter

import pytest

from fedpeft.data import StdlibDocs
from fedpeft.data.stdlib_docs import SAME, trigrams
from fedpeft.errors import DataError


@pytest.fixture(scope="module")
def corpus():
    return StdlibDocs().load(0)


def test_it_is_a_real_data_set(corpus):
    sizes = Counter(e.label for e in corpus.train + corpus.test)
    assert len(corpus.labels) == 24 and sum(sizes.values()) >= 1500
    assert min(sizes.values()) >= 40 and max(sizes.values()) == 120
    assert {"asyncio", "email", "unittest", "logging"} <= set(corpus.labels)
    assert list(corpus.labels) == sorted(corpus.labels)
    held = Counter(e.label for e in corpus.test)
    assert all(abs(held[label] - 0.2 * size) <= 1 for label, size in sizes.items())


def test_no_test_paragraph_has_a_near_copy_in_train(corpus):
    train = [trigrams(e.text) for e in corpus.train]
    for example in corpus.test:
        own = trigrams(example.text)
        assert all(len(own & other) <= SAME * len(own | other) for other in train), example


def test_paragraphs_are_prose(corpus):
    for example in corpus.train + corpus.test:
        assert len(example.text.split()) >= 8 and ">>> " not in example.text
        assert example.text == " ".join(example.text.split())


def test_the_seed_draws_another_subset():
    first, second = (StdlibDocs(modules=4, per_module=30).load(seed) for seed in (0, 1))
    assert first.labels == second.labels
    assert {e.text for e in first.train + first.test} != {e.text for e in second.train + second.test}


def test_more_modules_than_there_are():
    with pytest.raises(DataError, match=r"StdlibDocs\(modules=5000.*only 1\d\d modules.*ask for fewer modules"):
        StdlibDocs(modules=5000).load(0)


def library(tmp_path, monkeypatch, **files):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    for name, text in files.items():
        path = tmp_path / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


A = "Read a mail from the box, then mark it seen for ever."
B = "Open the door of the house and let all the guests in."
C = "Split a long string of words at every white space found."
D = "Draw one line from here to there on the given canvas."


def texts(**arguments):
    corpus = StdlibDocs(**{"modules": 2, "test_fraction": 0.01, **arguments}).load(0)
    return {(corpus.labels[e.label], e.text) for e in corpus.train + corpus.test}


def test_where_paragraphs_come_from(tmp_path, monkeypatch):
    library(
        tmp_path,
        monkeypatch,
        json=f'"""{A}\n\n>>> open_the_door(1) # of the house and let all the guests in"""\nPATTERN = "\\d"\n',
        _pydecimal=f'class Decimal:\n  def read(self):\n    """{B}\n\n    Too short.\n    """\n',
        email__in____init__=f'if True:\n  async def f():\n    """{C}\n    >>> f()\n    1"""\n',
        email__in__test__in__cases=f'"""{D}"""\n',
        email__in__mime__in__text=f'"""{D}\n\n    def run():\n        # {A}\n        pass"""',
        tkinter=f'"""{D}"""',
        _private=f'"""{D}"""',
        sitecustomize=f'"""{D}"""',
        requests=f'"""{D}"""',
    )
    assert texts(modules=3) == {("json", A), ("decimal", B), ("email", C), ("email", D)}


def test_copies_within_a_module_are_kept_once_and_between_modules_dropped(tmp_path, monkeypatch):
    near = A.replace("ever", "now").upper()
    library(
        tmp_path,
        monkeypatch,
        csv=f'"""{A}\n\n{near}\n\n{B}"""',
        json=f'"""{B.replace(",", ";")}\n\n{C}\n\n{C}"""',
    )
    assert texts() == {("csv", A), ("json", C)}


@pytest.mark.parametrize("folder", ["", "python311.zip"])
def test_a_library_without_sources_is_named(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / folder)})
    with pytest.raises(DataError, match=rf"as \.py files with docstrings under .*{folder}, found none; a zipped"):
        StdlibDocs().load(0)


def test_a_broken_source_is_named(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, json="def (")
    with pytest.raises(DataError, match=r"json\.py: expected Python source"):
        StdlibDocs().load(0)
