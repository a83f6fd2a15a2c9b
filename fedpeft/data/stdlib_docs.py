"""A real data set that every Python has: the documentation inside its own standard library."""

import ast
import re
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from textwrap import dedent

from fedpeft.data.base import Corpus, Example, Source, hold_out
from fedpeft.data.fields import check_count, check_number
from fedpeft.errors import DataError
from fedpeft.random import Purpose, Stream

# Programs, tables and vendored code rather than documented modules; and what distributions package apart or
# later versions removed, so that one version of Python has one corpus.
_LEFT_OUT = frozenset(
    {"antigravity", "encodings", "ensurepip", "idlelib", "pydoc_data", "this", "turtledemo"}
    | {"distutils", "lib2to3", "tkinter"}
)
_FOLDERS_LEFT_OUT = frozenset({"test", "tests", "idle_test", "_vendor", "__pycache__"})
_PLAIN_WORD = re.compile(r"""[("'`*]*[A-Za-z][A-Za-z'-]*[.,;:!?)"'`*]*""")
_PROSE_SHARE = 0.6
SAME = 0.7


@dataclass(frozen=True)
class StdlibDocs(Source):
    """Paragraphs of the docstrings of Python's standard library, labelled with their module: route a reader.

    Sources are parsed, never imported. A paragraph ends before its first doctest line, has its white space
    collapsed, and counts as prose if most of its words are plain ones and it is not valid Python. Two
    paragraphs are taken for the same if their sets of word trigrams overlap by more than 70 % (Jaccard;
    Broder 1997, "On the resemblance and containment of documents"): one module keeps the first, and what two
    modules share is dropped from both, so no paragraph of train has a near copy in test. A paragraph may
    contain its module's name verbatim, which makes that one easy: the words are as written. The corpus
    belongs to a version of Python and differs a little in the next.

    Args:
        modules: number of classes: the modules with the most paragraphs, equal counts by name; at least 2.
        per_module: most paragraphs of one module, drawn by the seed.
        test_fraction: share of each module's paragraphs held out for testing, in (0, 1).
        min_words: least number of plain words in a paragraph.
    """

    modules: int = 24
    per_module: int = 120
    test_fraction: float = 0.2
    min_words: int = 8

    def __post_init__(self) -> None:
        check_count(self, "modules", least=2)
        check_count(self, "per_module", least=2)
        check_number(self, "test_fraction", 0, 1, open_low=True)
        check_count(self, "min_words", least=1)

    def load(self, seed: int) -> Corpus:
        """The paragraphs; `seed` draws `per_module` of each module and the held-out part."""
        available = _harvest(sysconfig.get_paths()["stdlib"], self.min_words)
        if self.modules > len(available):
            raise DataError(
                f"{self}: only {len(available)} modules have paragraphs of {self.min_words} words; "
                "ask for fewer modules"
            )
        chosen = sorted(sorted(available, key=lambda m: (-len(available[m]), m))[: self.modules])
        examples: list[Example] = []
        for label, module in enumerate(chosen):
            paragraphs = available[module]
            order = Stream(seed, Purpose.SPLIT, round=1, client=label).permutation(len(paragraphs))
            drawn = sorted(order[: self.per_module].tolist())
            examples.extend(Example(paragraphs[i], label) for i in drawn)
        train, test = hold_out(examples, self.test_fraction, seed)
        return Corpus("stdlib_docs", train, test, tuple(chosen))


@lru_cache(maxsize=4)
def _harvest(root: str, min_words: int) -> dict[str, tuple[str, ...]]:
    """The paragraphs of each module, in the order of files and lines."""
    texts: list[str] = []
    modules_of: list[set[str]] = []
    sizes: list[int] = []
    texts_with: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for module, path in _sources(root):
        for paragraph in filter(partial(_is_prose, min_words=min_words), _paragraphs(path)):
            own = trigrams(paragraph)
            shared = Counter(chain.from_iterable(texts_with[trigram] for trigram in own))
            twins = [i for i, n in shared.items() if n > SAME * (len(own) + sizes[i] - n)]
            for i in twins:
                modules_of[i].add(module)
            if not twins:
                for trigram in own:
                    texts_with[trigram].append(len(texts))
                texts.append(" ".join(paragraph.split()))
                modules_of.append({module})
                sizes.append(len(own))
    harvest: defaultdict[str, list[str]] = defaultdict(list)
    for text, modules in zip(texts, modules_of, strict=True):
        if len(modules) == 1:
            harvest[modules.pop()].append(text)
    if not harvest:
        raise DataError(
            f"StdlibDocs: expected the standard library as .py files with docstrings under {root}, found "
            "none; a zipped or frozen Python has no sources (use LocalFile)"
        )
    return {module: tuple(paragraphs) for module, paragraphs in harvest.items()}


def trigrams(text: str) -> set[tuple[str, ...]]:
    """Three words in a row, wherever they stand; a word is its letters, in lower case.

    >>> sorted(trigrams("Return item 3, or None."))
    [('item', 'or', 'none'), ('return', 'item', 'or')]
    """
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def _is_prose(paragraph: str, min_words: int) -> bool:
    words = paragraph.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return plain >= max(min_words, _PROSE_SHARE * len(words)) and _parsed(dedent(paragraph)) is None


def _parsed(source: str | bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            # An old module's invalid escape sequence is a warning in every newer Python.
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def _sources(root: str) -> Iterator[tuple[str, Path]]:
    folder = Path(root)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for entry in entries:
        module = _documented_module(entry.name.removesuffix(".py"))
        if module is None:
            continue
        paths = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]
        for path in paths:
            if path.suffix == ".py" and not _FOLDERS_LEFT_OUT & set(path.relative_to(folder).parts):
                yield module, path


def _documented_module(name: str) -> str | None:
    """The public module that a file or folder documents: `_pydecimal` is the Python text of `decimal`."""
    if name.startswith("_py"):
        name = name.removeprefix("_py").lstrip("_")
    public = not name.startswith("_") and name in sys.stdlib_module_names
    return name if public and name not in _LEFT_OUT else None


def _paragraphs(path: Path) -> Iterator[str]:
    try:
        tree = _parsed(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if tree is None:
        raise DataError(f"{path}: expected Python source of the standard library, got something else")
    for docstring in _docstrings(tree):
        for paragraph in re.split(r"\n\s*\n", docstring):
            yield re.split(r"(?m)^\s*>>> ", paragraph, maxsplit=1)[0]


def _docstrings(node: ast.AST) -> Iterator[str]:
    """In the order of lines; expressions, which hold no definition, are most of a tree and are left out."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _docstrings(child)
