"""Expressions: what they may say, and every refusal."""

from dataclasses import dataclass
from typing import Any

import pytest

from fedpeft import codecs, strategies
from fedpeft.codecs import NAMES, Clip, ErrorFeedback, Identity, Ternary, Uniform, chain, per_slot
from fedpeft.errors import ConfigError
from fedpeft.expressions import nearest, parse
from fedpeft.strategies import TIES, Mean
from tests.codecs.examples import without_type_checks


@dataclass(frozen=True)
class Holder:
    value: Any = None


def held(text):
    return parse(f"Holder({text})", Holder, {"Holder": Holder}).value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("2.5", 2.5),
        ("-1e-3", -1e-3),
        ("True", True),
        ("None", None),
        ("'a b'", "a b"),
        ('"lambda: 0"', "lambda: 0"),
        ("[]", []),
        ("[1, 'a', [2]]", [1, "a", [2]]),
        ("(1, 2)", (1, 2)),
        ("(1,)", (1,)),
        ("{}", {}),
        ("{'a': 1, 2: (3,)}", {"a": 1, 2: (3,)}),
        ("Holder(1)", Holder(1)),
        ("value=[Holder(value=Holder())]", [Holder(Holder())]),
        ("1_000", 1000),
        ("0x10", 16),
    ],
)
def test_literals_and_calls(text, value):
    assert held(text) == value and type(held(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("Identity()", Identity()),
        (" Ternary(0.1, scale='norm')\n", Ternary(0.1, "norm")),
        ("ErrorFeedback(Uniform(bits=4, stochastic=True), decay=0.5)", ErrorFeedback(Uniform(4, True), 0.5)),
        ("chain(Clip(norm=1.0), Ternary())", chain(Clip(1.0), Ternary())),
        (
            "per_slot({'lora_A': Identity('float16')}, default=Ternary())",
            per_slot({"lora_A": Identity("float16")}, default=Ternary()),
        ),
        ("per_slot(\n  {},\n  default=Identity(),\n)", per_slot({}, default=Identity())),
    ],
)
def test_codecs(text, codec):
    assert codecs.parse(text) == codec


def test_strategies():
    assert strategies.parse("Mean()") == Mean()
    assert strategies.parse("TIES(0.5, trim='none', elect='count')") == TIES(0.5, "none", "count")


REFUSED = {
    # what is no call, literal or name
    "Identity().encode": "a dotted path is not admitted here",
    "Identity.__init__": "a dotted path is not admitted here",
    "().__class__.__bases__[0].__subclasses__()": "not (admitted|part)",
    "Identity(dtype=''.join(['float32']))": "a dotted path is not admitted here",
    "__import__('os')": "unknown name '__import__'",
    "eval('1')": "unknown name 'eval'",
    "os.system('true')": r"os\.system: a dotted path is not admitted here",
    "fedpeft.codecs.Identity()": "a dotted path is not admitted here",
    "lambda: Identity()": "'lambda: Identity\\(\\)' is not part of an expression; use calls, literals and names",
    "(lambda: Identity())()": "is not part of an expression",
    "[Identity() for _ in (1,)]": "is not part of an expression",
    "[x for x in [1]]": "is not part of an expression",
    "{x for x in [1]}": "is not part of an expression",
    "{1: x for x in [1]}": "is not part of an expression",
    "(x for x in [1])": "is not part of an expression",
    "chain(x for x in [1])": "is not part of an expression",
    "Ternary(**{'density': 0.1})": r"\*\* is not part of an expression",
    "Ternary(*[0.1])": "is not part of an expression",
    "per_slot({**{}}, default=Identity())": "is not part of an expression",
    "Identity(f'float{32}')": "is not part of an expression",
    "f'{1}'": "is not part of an expression",
    "Identity() if True else Ternary()": "is not part of an expression",
    "Identity() or Ternary()": "is not part of an expression",
    "not Identity()": "is not part of an expression",
    "Ternary(density=0.1 + 0.1)": "'0.1 \\+ 0.1' is not part of an expression",
    "Ternary(density=9**9**9)": "is not part of an expression",
    "Ternary(density=+0.1)": "is not part of an expression",
    "Ternary(density=~1)": "is not part of an expression",
    "Ternary(density=--0.1)": "is not part of an expression",
    "Ternary(density=-'a')": "is not part of an expression",
    "Ternary(density=1 < 2)": "is not part of an expression",
    "Identity()[0]": "is not part of an expression",
    "[Identity()][0]": "is not part of an expression",
    "{Identity()}": "is not part of an expression",
    "Identity(b'float32')": "is not part of an expression",
    "Ternary(1j)": "is not part of an expression",
    "Identity(...)": "is not part of an expression",
    "...": "is not part of an expression",
    "(x := Identity())": "is not part of an expression",
    "await Identity()": "is not part of an expression",
    "(yield)": "is not part of an expression",
    # what is no Python expression
    "": "invalid syntax",
    "  \n ": "invalid syntax",
    "Identity(": "was never closed",
    "Identity())": "unmatched",
    "Identity() Identity()": "invalid syntax",
    "Identity(); Identity()": "invalid syntax",
    "import os": "invalid syntax",
    "x = Identity()": "invalid syntax",
    "del x": "invalid syntax",
    "Identity()\n1": "invalid syntax",
    "Identity(\0)": "null bytes",
    "\ud800": "surrogates not allowed",
    "Ternary(density=0777)": "leading zeros",
    # names and settings
    "Ternray()": "unknown name 'Ternray'; did you mean 'Ternary'?",
    "ternary()": "unknown name 'ternary'; did you mean 'Ternary'?",
    "Zzzzzz()": "unknown name 'Zzzzzz'; choose one of '",
    "x": "unknown name 'x'",
    "Ternary(densty=0.1)": "Ternary has no setting 'densty'; did you mean 'density'?",
    "Ternary(qqq=0.1)": "Ternary has no setting 'qqq'; choose one of 'context', 'density', 'scale', 'threshold'",
    "Ternary(0.1, density=0.1)": r"Ternary\(.*multiple values for argument 'density'",
    "Ternary(density=0.1, density=0.2)": "Ternary is given one setting twice",
    "Ternary(0.1, 'mean', 'slot', True, 4)": "Ternary.*: too many positional arguments",
    "Clip()": "Clip.*: missing a required argument: 'norm'",
    "ErrorFeedback()": "missing a required argument: 'codec'",
    "per_slot({})": "missing a required argument: 'default'",
    # values
    "Ternary(context=1)": "context must be True or False, got 1",
    "Ternary(density=2)": r"density must lie in \(0, 1\], got 2",
    "Ternary(density='0.1')": "Ternary: '<' not supported",
    "Ternary(density=None)": "Ternary: '<' not supported",
    "Ternary(density=1e999)": r"density must lie in \(0, 1\], got inf",
    "chain(Clip(norm=1e999), Identity())": "norm must be positive and finite, got inf",
    "Identity({})": "Identity: unhashable type",
    "per_slot({[1]: Identity()}, default=Identity())": "unhashable type: 'list'",
    "per_slot({'a': 3}, default=Identity())": "expected a codec for 'a', got 3",
    "per_slot(3, default=Identity())": "expected a mapping of patterns to codecs, got 3",
    "chain(Identity(), Identity())": "every step of a chain but the last must be a transform",
    "chain()": "the last step of a chain must be a codec",
    # what is built is something else
    "Ternary": r"names a class; call it: Ternary\(\)",
    "chain": "expected a .*Codec.*, got function",
    "Clip(1.0)": "expected a .*Codec.*, got Clip",
    "3": "expected a .*Codec.*, got int",
    "'Identity()'": "expected a .*Codec.*, got str",
    "None": "expected a .*Codec.*, got NoneType",
    "[Identity()]": "expected a .*Codec.*, got list",
    "Identity()()": r"Identity\(\) cannot be called",
    "3()": "3 cannot be called",
    "ErrorFeedback(Ternary)": "ErrorFeedback wraps a codec, got <class",
    "Mean()": "unknown name 'Mean'",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text.encode("unicode_escape").decode()[:60] or "empty")
@without_type_checks()
def test_refused(text):
    with pytest.raises(ConfigError, match=REFUSED[text].replace("?", r"\?")) as caught:
        codecs.parse(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "chain(" * 10_000 + "Identity()" + ")" * 10_000,
        "-" * 10_000 + "1",
        "[" * 10_000 + "]" * 10_000,
        "(" * 2000 + "1" + ")" * 2000,
        "-" * 4000 + "1",
        "not " * 900 + "1",
        "[" * 150 + "]" * 150,
        "1" + "+1" * 2000,
        "a" + ".a" * 2000,
        "f" + "()" * 2000,
        "lambda:" * 500 + "1",
        "{1:" * 190 + "1" + "}" * 190,
        "Ternary(" + "9" * 4000 + ")",
        "'" + "a" * 5000 + "'",
        "1 if 1 else " * 300 + "1",
    ],
    ids=lambda text: f"{len(text)} {text[:12]}",
)
def test_deep_and_long_expressions_are_refused_not_crashed_on(text):
    for imports in (False, True):
        with pytest.raises(ConfigError):
            codecs.parse(text, imports=imports)


def test_an_expression_has_a_longest_length():
    assert codecs.parse("Identity()" + " " * 4086) == Identity()
    with pytest.raises(ConfigError, match="at most 4096 characters, got 4097"):
        codecs.parse("Identity()" + " " * 4087)


def test_a_setting_of_a_callable_with_any_settings_is_its_own_affair():
    def anything(**settings):
        return Holder(settings)

    assert parse("anything(a=1, b='x')", Holder, {"anything": anything}) == Holder({"a": 1, "b": "x"})


@pytest.mark.parametrize("text", ["fedpeft.codecs.Identity()", "fedpeft.codecs.identity.Identity(dtype='float32')"])
def test_a_dotted_path_is_imported_where_that_is_admitted(text):
    assert codecs.parse(text, imports=True) == Identity()
    assert codecs.parse(f"ErrorFeedback({text})", imports=True) == ErrorFeedback(Identity())
    with pytest.raises(ConfigError, match="a dotted path is not admitted here"):
        codecs.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuchpackage.Thing()", r"nosuchpackage\.Thing: cannot import nosuchpackage: No module named"),
        ("fedpeft.nosuch.Thing()", "cannot import fedpeft.nosuch"),
        ("fedpeft.codecs.Identiti()", r"fedpeft\.codecs has no 'Identiti'; did you mean 'Identity'\?"),
        ("fedpeft.codecs.Identity", "names a class; call it"),
        ("fedpeft.codecs", "expected a .*Codec.*, got module"),
        ("fractions.Fraction(1, 2)", "expected a .*Codec.*, got Fraction"),
        ("Identity().encode", "cannot import"),
        ("(1).real", "cannot import"),
        ("''.join([])", "cannot import"),
        ("[].append(1)", "cannot import"),
        ("(lambda: 0).x", "cannot import"),
    ],
)
def test_a_dotted_path_that_leads_nowhere(text, message):
    with pytest.raises(ConfigError, match=message):
        codecs.parse(text, imports=True)


def test_nothing_is_imported_or_called_by_a_text_that_is_refused(monkeypatch):
    monkeypatch.setattr("builtins.eval", lambda *args: pytest.fail("evaluated"))
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    for text in REFUSED:
        with pytest.raises(ConfigError):
            codecs.parse(text)


def test_nearest():
    assert nearest("ternry", ["Ternary", "ternary", "mean"]) == "did you mean 'ternary'?"
    assert nearest("q", ["b", "a"]) == "choose one of 'a', 'b'"
    assert all(nearest(name[:-1], NAMES) == f"did you mean {name!r}?" for name in NAMES)
