"""Updates that arrive one by one: each adds only what is new in it to what is merged already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Slot, Space
from fedpeft.strategies.base import Context, Strategy, Summands, Update, check, check_number


@dataclass(frozen=True)
class OPCM(Strategy):
    """Orthogonal projection-based continual merging.

    Tang et al., 2025, arXiv 2501.09522. With U S V^T of what is merged, D, and k the number
    of its leading singular values that hold at most `alpha` of their sum, a newcomer's T loses of U^T T V the diagonal
    and the leading k x k block. Then D <- (lambda D + what is left) / lambda', where lambda' makes the norm of D, over
    all matrices, the mean norm of the updates so far; lambda starts at 1.

    Order matters, weights do not, and nothing is a sum: no tree, no masked sums. Updates are read once, and memory is
    the merged delta and one update in float64. Sites that join years apart need no old update: keep what `join`
    returns.

    It differs from FusionBench's `opcm` in these: where D has a lower rank than its shape allows, directions beyond
    that rank, which are arbitrary, take nothing from T; slots that are no matrices keep the plain running mean and
    stay out of the norms, where they are added up and scaled with the rest; there is no shuffling.

    >>> from fedpeft.space import Space
    >>> ctx = Context(Space((Slot("a", (2, 2), "lora_A"),)))
    >>> rows = [2.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 2.0]
    >>> [round(x, 3) for x in OPCM().merge([Update(torch.tensor(row)) for row in rows], ctx).tolist()]
    [2.611, 0.0, 0.0, 2.611]

    Args:
        alpha: share of the sum of singular values that a newcomer may not touch, in [0, 1); 0: the diagonal alone.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must lie in [0, 1), got {self.alpha}")

    @property
    def streaming(self) -> bool:
        """True: no update is kept."""
        return True

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """Let them join in order."""
        check_number(self, updates)
        joined: Summands = {}
        for update in updates:
            check([update], ctx)
            joined = self.join(joined, update.delta, ctx.space)
        return joined["merged"].float()

    def join(self, joined: Summands, delta: Float[Tensor, " d"], space: Space) -> dict[str, Tensor]:
        """What is merged once one more has joined, as named float64 tensors that can be saved and taken up again.

        Args:
            joined: what this returned for those before; empty for the first. "merged" is their delta.
            delta: the newcomer's.
            space: of both.
        """
        tau = delta.to(torch.float64, copy=True)
        if not joined:
            return _state(tau, 1.0, 1.0, _norm(tau, space))
        before, count, factor = joined["merged"], float(joined["count"]) + 1, float(joined["factor"])
        norm = float(joined["norm"]) + (_norm(tau, space) - float(joined["norm"])) / count
        merged = before + (tau - before) / count
        for slot in _matrices(space):
            old = space.view(before, slot.name)
            space.view(merged, slot.name).copy_(factor * old + self._news(old, space.view(tau, slot.name)))
        found = _norm(merged, space)
        for slot in _matrices(space):
            space.view(merged, slot.name).mul_(norm / found if found else 0.0)
        return _state(merged, count, found / norm if norm else 1.0, norm)

    def _news(self, old: Float[Tensor, "m n"], tau: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """What an update brings that is not merged already."""
        u, s, vh = torch.linalg.svd(old, full_matrices=False)
        rank = int((s > s[0] * max(old.shape) * torch.finfo(s.dtype).eps).sum())
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        k = int((s.cumsum(0) <= self.alpha * s.sum()).sum())
        known = torch.eye(rank, dtype=torch.bool)
        known[:k, :k] = True
        news: Tensor = tau - u @ torch.where(known, u.T @ tau @ vh.T, 0.0) @ vh
        return news


def _state(merged: Float[Tensor, " d"], count: float, factor: float, norm: float) -> dict[str, Tensor]:
    numbers = {"count": count, "factor": factor, "norm": norm}
    return {"merged": merged, **{name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}}


def _matrices(space: Space) -> Iterator[Slot]:
    return (slot for slot in space.slots if len(slot.shape) == 2 and slot.numel)


def _norm(vector: Float[Tensor, " d"], space: Space) -> float:
    """Over all matrices."""
    norms = [torch.linalg.vector_norm(space.view(vector, slot.name)) for slot in _matrices(space)]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
