"""What each public strategy declares, as a table: `python -m fedpeft.strategies.capabilities` prints it in Markdown."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedpeft.strategies import (
    NAMES,
    OPCM,
    Fisher,
    GeometricMedian,
    KnOTS,
    Krum,
    Mean,
    RankVote,
    Strategy,
    by_slot,
)

_GIVEN: dict[str, Any] = {"byzantine": 1, "density": 0.5, "factor": 1.0, "fraction": 0.1, "norm": 1.0, "radius": 1.0}
_INSIDE = (Mean(), GeometricMedian(), Fisher(), RankVote(), KnOTS(), Krum(1), OPCM())
_ROUNDS = range(1, 13)
_AS_INSIDE = "as inside"


@dataclass(frozen=True)
class Capability:
    """One strategy's row; a wrapper's cell says "as inside" where it declares what the strategy inside does.

    Args:
        strategy: its name in an expression.
        reference: the first arXiv number that its docstring cites; "" for none.
        streams: memory does not grow with the number of clients.
        ternary: merges ternary updates without writing one out.
        sums: is a function of sums over clients.
        averages: knows updates by their weighted mean alone.
        passes: how often the updates are read in a round, where it is a sum.
        needs: of each update beyond its delta, or of the context, or of the run.
        anchored: works on adapters, so all updates must have begun at one.
        settles: says where parameters shall be, so the server's optimizer is SGD(lr=1.0).
        least: the fewest updates that it merges.
        runs: merges in a run, and not only adapters at hand.
    """

    strategy: str
    reference: str
    streams: str
    ternary: str
    sums: str
    averages: str
    passes: str
    needs: str
    anchored: str
    settles: str
    least: str
    runs: str


def capabilities() -> tuple[Capability, ...]:
    """A row for every public strategy, asked of instances, by name."""
    return tuple(_row(name, NAMES[name]) for name in sorted(NAMES, key=str.lower))


def markdown() -> str:
    """All rows, as a Markdown table."""
    names = [field.name for field in fields(Capability)]
    lines = [names, ["---"] * len(names)]
    for row in capabilities():
        cells = {name: getattr(row, name) for name in names} | {"strategy": f"`{row.strategy}`"}
        if row.reference:
            cells["reference"] = f"[{row.reference}](https://arxiv.org/abs/{row.reference})"
        lines.append(list(cells.values()))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(name: str, kind: Callable[..., Strategy]) -> Capability:
    cited = re.search(r"arXiv\s+(\d{4}\.\d{4,5})", inspect.getdoc(kind) or "")
    return Capability(
        strategy=name,
        reference=cited[1] if cited else "",
        streams=_told(kind, lambda strategy: strategy.streaming),
        ternary=_told(kind, lambda strategy: strategy.ternary),
        sums=_told(kind, lambda strategy: strategy.additive),
        averages=_told(kind, lambda strategy: strategy.averaging),
        passes=_told(kind, lambda strategy: strategy.passes, [inside for inside in _INSIDE if inside.additive]),
        needs=_needs(kind),
        anchored=_told(kind, lambda strategy: strategy.anchored),
        settles=_told(kind, lambda strategy: strategy.settles),
        least=_told(kind, lambda strategy: strategy.least),
        runs=_told(kind, lambda strategy: not strategy.offline),
    )


def _wraps(kind: Callable[..., Strategy]) -> bool:
    return not is_dataclass(kind) or any(field.name == "strategy" for field in fields(kind))


def _made(kind: Callable[..., Strategy], inside: Strategy = _INSIDE[0]) -> Strategy:
    """An instance of a class, with defaults where it has them."""
    if not is_dataclass(kind):
        return by_slot({}, default=inside)
    required = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    return kind(**{name: inside if name == "strategy" else _GIVEN[name] for name in required})


def _told(kind: Callable[..., Strategy], ask: Callable[[Strategy], int], inside: Sequence[Strategy] = _INSIDE) -> str:
    """What instances answer: of the default one, of those with other choices, of those with others inside."""
    if _wraps(kind):
        answers = [ask(_made(kind, strategy)) for strategy in inside]
        if answers == [ask(strategy) for strategy in inside]:
            return _AS_INSIDE
        if len(set(answers)) > 1:
            raise TypeError(f"{kind} answers {answers} for {inside}: neither as these do nor always the same")
    strategy = _made(kind)
    text = _formula(strategy, ask)
    for choice, other in _choices(strategy):
        if ask(other) != ask(strategy):
            text += f", {_formula(other, ask)} with `{choice}`"
    return text


def _formula(strategy: Strategy, ask: Callable[[Strategy], int]) -> str:
    """A yes or a no; a number, and how it follows from an argument where it does."""
    answer = ask(strategy)
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    for name, value in vars(strategy).items():
        if type(value) is int:
            first, second, third = (ask(replace(strategy, **{name: value + more})) for more in range(3))  # type: ignore[type-var]
            step, rest = second - first, first - (second - first) * value
            if step and third - second == step:
                return f"{step if step > 1 else ''} `{name}`{f' + {rest}' if rest else ''}".strip()
    return str(answer)


def _choices(strategy: Strategy) -> Iterator[tuple[str, Strategy]]:
    """The strategy with each other word that one of its arguments may be."""
    for name, hint in get_type_hints(type(strategy)).items():
        if get_origin(hint) is Literal:
            for word in get_args(hint):
                yield f'{name}="{word}"', replace(strategy, **{name: word})  # type: ignore[type-var]


def _needs(kind: Callable[..., Strategy]) -> str:
    """Statistics, when they are asked for, what must be given or set, and whether sites train in every round."""
    strategy = _made(kind)
    own = strategy.needs
    found = [f"`{name}`{_when(name in strategy.asks(number) for number in _ROUNDS)}" for name in sorted(own)]
    for choice, other in _choices(strategy):
        if other.needs != own:
            found.append(" and ".join(f"`{name}`" for name in sorted(other.needs)) + f" with `{choice}`")
    found += ["the run's `root`"] if strategy.rooted else []
    if strategy.scores:
        found.append("`training.supermask`")
    if not all(strategy.trains(number) for number in _ROUNDS):
        found.append("no training" + _when(not strategy.trains(number) for number in _ROUNDS))
    if _wraps(kind):
        if any(_made(kind, inside).needs != inside.needs | own for inside in _INSIDE):
            raise TypeError(f"{kind} does not need what the strategy inside does")
        found.append(_AS_INSIDE)
    return ", ".join(found)


def _when(asked: Iterable[bool]) -> str:
    """In which rounds, where it is not all of them."""
    rounds = [number for number, yes in zip(_ROUNDS, asked, strict=True) if yes]
    return "" if len(rounds) == len(_ROUNDS) else f" once in {rounds[0]} rounds"


if __name__ == "__main__":
    sys.stdout.write(markdown())
