"""Weights of a merge, chosen by what the merged adapter scores on data that the server has."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.errors import ConfigError
from fedpeft.strategies.base import Context, Strategy, Update, check, check_number
from fedpeft.strategies.mapped import Mapped
from fedpeft.strategies.mean import Mean

Objective: TypeAlias = Callable[[Tensor], float]
_SPAN = 8.0  # of log-weights: from 1 / 3000 to 3000
_WORST = 1e100


@dataclass(frozen=True, eq=False)
class Weighed:
    """The best merge that a search met.

    Args:
        delta: merged with these weights.
        weights: one for each update, positive; they add up to 1.
        value: of the objective there.
        evaluations: of the objective, in all.
    """

    delta: Float[Tensor, " d"]
    weights: tuple[float, ...]
    value: float
    evaluations: int


def optimise_weights(
    updates: Sequence[Update],
    ctx: Context,
    objective: Objective,
    strategy: Strategy | None = None,
    *,
    evaluations: int = 200,
    method: Literal["model", "evolution"] = "model",
    seed: int = 0,
) -> Weighed:
    """The weights of updates with which a strategy's merge has the least objective, as a validation loss.

    Khalifa et al., 2024, arXiv 2412.04144 (weights of a linear merge), and Akiba, Shing, Tang, Sun and Ha, 2024, arXiv
    2403.13187; they search with CMA-ES, and each model has one weight. Log-weights are searched here, from the equal
    ones, by SciPy: "model" is COBYQA, a trust region with quadratic models, for smooth objectives; "evolution" is
    differential evolution, for steps and noise, which wants many more evaluations. The result is never worse than
    equal weights or than the updates' own, the first two merges that are tried. Each evaluation merges all updates
    anew: give them in a list, if they fit in memory.

    Args:
        updates: to merge; their own weights are only a first guess.
        ctx: what they began at.
        objective: from an adapter (the start plus a delta), float32, shape (d,), to a number to minimise; infinite or
            NaN for an adapter that is no good.
        strategy: merges; `Mean()` if None. It must heed weights.
        evaluations: of the objective at most, from 2.
        method: of the search.
        seed: of the evolution, from 0.

    Raises:
        ValueError: an argument is out of range, there are too few updates, one cannot be merged, or no merge has a
            finite objective.
    """
    strategy = strategy or Mean()
    check_number(strategy, updates)
    if evaluations < 2:
        raise ValueError(f"evaluations must be at least 2, got {evaluations}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if method not in ("model", "evolution"):
        raise ValueError(f"method must be 'model' or 'evolution', got {method!r}")
    own = np.array([_log_weight(update, ctx, strategy) for update in updates])
    search = _Search(updates, ctx, objective, strategy, evaluations)
    try:
        search(own)
        search(np.zeros(len(updates)))
        _minimise(search, len(updates), method, seed)
    except _Spent:
        pass
    return search.outcome()


class _Spent(Exception):  # noqa: N818
    """All evaluations are spent."""


class _Search:
    """The objective of log-weights: it counts, remembers the best, and stops the search when it has had its share."""

    def __init__(
        self, updates: Sequence[Update], ctx: Context, objective: Objective, strategy: Strategy, most: int
    ) -> None:
        self._updates, self._ctx, self._objective, self._strategy = updates, ctx, objective, strategy
        self._most, self._met = most, 0
        self._best: tuple[float, tuple[float, ...]] | None = None

    def __call__(self, log_weights: NDArray[np.float64]) -> float:
        if not self.left:
            raise _Spent
        self._met += 1
        weights = _proportions(log_weights)
        value = float(self._objective(self._adapter(self._merge(weights))))
        if math.isfinite(value) and (self._best is None or value < self._best[0]):
            self._best = value, weights
        return min(max(value, -_WORST), _WORST) if math.isfinite(value) else _WORST

    def _merge(self, weights: tuple[float, ...]) -> Float[Tensor, " d"]:
        def reweighed(i: int) -> Update:
            return replace(self._updates[i], weight=weights[i])

        return self._strategy.merge(Mapped(range(len(weights)), reweighed), self._ctx)

    def _adapter(self, delta: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        return delta if self._ctx.start is None else self._ctx.start + delta

    @property
    def left(self) -> int:
        """Evaluations that it may still make."""
        return self._most - self._met

    def outcome(self) -> Weighed:
        """The best that was met."""
        if self._best is None:
            raise ValueError(f"the objective was finite for none of {self._met} merges")
        value, weights = self._best
        return Weighed(self._merge(weights), weights, value, self._met)


def _log_weight(update: Update, ctx: Context, strategy: Strategy) -> float:
    check([update], ctx, strategy.asks(ctx.round))
    return math.log(update.weight)


def _proportions(log_weights: NDArray[np.float64]) -> tuple[float, ...]:
    """Weights that add up to 1, no log-weight further than the span below the highest."""
    weights = np.exp(np.maximum(log_weights - log_weights.max(), -_SPAN))
    return tuple((weights / weights.sum()).tolist())


def _minimise(search: "_Search", n: int, method: str, seed: int) -> None:
    """Let SciPy ask until all evaluations are spent, or it finds nothing better."""
    try:
        from scipy import optimize
    except ImportError:
        raise ConfigError("optimising weights needs SciPy: pip install 'fedpeft[search]'") from None
    bounds = [(-_SPAN / 2, _SPAN / 2)] * n
    if method == "model":
        options = {"maxfev": 10**6, "initial_tr_radius": 1.0, "final_tr_radius": 1e-6}
        optimize.minimize(search, np.zeros(n), method="COBYQA", bounds=bounds, options=options)
        return
    draw = np.random.default_rng(seed)
    first = draw.normal(size=(max(5, min(10 * n, search.left // 10)), n)).clip(-_SPAN / 2, _SPAN / 2)
    optimize.differential_evolution(search, bounds, init=first, maxiter=10**6, tol=0, polish=False, rng=draw)
