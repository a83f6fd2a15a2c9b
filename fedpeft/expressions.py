"""Expressions such as `ErrorFeedback(Ternary(density=0.2))`: how a config and a payload name an object.

The text is walked as a syntax tree that admits calls, literals and names; nothing is evaluated. A name is looked
up in the namespace that the caller gives; a dotted path to a third party's class is imported only where the caller
says so (a user's own YAML), never for text that came over a wire.
"""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedpeft.errors import ConfigError

_LONGEST = 4096


def parse(text: str, kind: Any, namespace: Mapping[str, Callable[..., Any]], *, imports: bool = False) -> Any:
    """The object that an expression describes.

    >>> from fractions import Fraction
    >>> parse("Fraction(3, denominator=6)", Fraction, {"Fraction": Fraction})
    Fraction(1, 2)

    Args:
        text: the expression.
        kind: the class, or union of classes, that the object must be of.
        namespace: what names may stand for.
        imports: admit dotted paths, and import them.

    Raises:
        ConfigError: the text is no such expression; the message says where and what would be.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"an expression has at most {_LONGEST} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        found = _build(tree, namespace, imports)
    except (SyntaxError, RecursionError, MemoryError, TypeError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"{text!r}: {reason}") from None
    if isinstance(found, type):
        raise ConfigError(f"{text!r} names a class; call it: {text.strip()}()")
    if not isinstance(found, kind):
        raise ConfigError(f"{text!r}: expected a {getattr(kind, '__name__', kind)}, got {type(found).__name__}")
    return found


def called(text: str) -> set[str]:
    """The names of all classes that an expression calls, dotted ones whole; nothing is imported.

    >>> sorted(called("ErrorFeedback(codec=Ternary(density=0.2), decay=1.0)"))
    ['ErrorFeedback', 'Ternary']

    Raises:
        ConfigError: the text is no expression.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"an expression has at most {_LONGEST} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise ConfigError(f"{text[:200]!r}: {error}") from None


def nearest(word: str, choices: Iterable[str]) -> str:
    """What to write instead of a misspelt word: "did you mean 'x'?", or the whole choice."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "choose one of " + ", ".join(map(repr, choices))


def _build(node: ast.expr, namespace: Mapping[str, Callable[..., Any]], imports: bool) -> Any:
    def build(inner: ast.expr) -> Any:
        return _build(inner, namespace, imports)

    match node:
        case ast.Constant(value=value) if isinstance(value, bool | int | float | str | None):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if isinstance(value, int | float):
            return -value
        case ast.List(elts=items):
            return [build(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(build(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {build(key): build(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.Name(id=name):
            if name not in namespace:
                raise ValueError(f"unknown name {name!r}; {nearest(name, namespace)}")
            return namespace[name]
        case ast.Attribute():
            return _import(ast.unparse(node), imports)
        case ast.Call(func=function, args=args, keywords=keywords):
            called = build(function)
            if not callable(called):
                raise ValueError(f"{ast.unparse(function)} cannot be called")
            if any(keyword.arg is None for keyword in keywords):
                raise ValueError("** is not part of an expression")
            named = {str(keyword.arg): build(keyword.value) for keyword in keywords}
            if len(named) < len(keywords):
                raise ValueError(f"{ast.unparse(function)} is given one setting twice")
            return _call(called, [build(arg) for arg in args], named)
    raise ValueError(f"{ast.unparse(node)!r} is not part of an expression; use calls, literals and names")


def _call(called: Callable[..., Any], args: list[Any], named: dict[str, Any]) -> Any:
    name = getattr(called, "__name__", repr(called))
    signature = inspect.signature(called)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in named:
        if key not in signature.parameters and not takes_any:
            raise ValueError(f"{name} has no setting {key!r}; {nearest(key, signature.parameters)}")
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        raise ValueError(f"{name}{signature}: {error}") from None
    try:
        return called(*args, **named)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def _import(path: str, imports: bool) -> Any:
    if not imports:
        raise ValueError(f"{path}: a dotted path is not admitted here")
    module, _, name = path.rpartition(".")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{path}: cannot import {module}: {error}") from None
    if not hasattr(loaded, name):
        raise ValueError(f"{module} has no {name!r}; {nearest(name, (n for n in vars(loaded) if n[0] != '_'))}")
    return getattr(loaded, name)
