"""What a site can say of its adapter beyond the delta: the shape of each statistic, and what no statistic can be."""

import json
from collections.abc import Collection, Mapping
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Slot, Space

STATISTICS = ("fisher", "gram", "head")
_ROUNDING = 2.0**-22  # of a trace: what float32 entries can take from an eigenvalue, four times over


@lru_cache(maxsize=64)
def statistic_space(name: str, space: Space) -> Space:
    """The space of a statistic of an adapter; its slots have the statistic's name for a role.

    * "fisher": for each trained parameter, the diagonal Fisher information, E[(d log p(y | x) / d theta)^2].
    * "gram": for each B of a LoRA, with shape (out, r), the r x r mean of z z^T over its inputs z = A x. A linear head
      has none: its Gram is as wide as the model, more numbers than the head itself.
    * "head": for the linear head, with shape (classes, in), the mean of u u^T over its inputs with a one added, u =
      [x, 1], and below it that of e_y u^T for the class y of each example: shape (in + 1 + classes, in + 1). It is
      measured on the adapter that the round began at, the same for all, so that it adds up over sites.

    >>> statistic_space("gram", Space((Slot("q.lora_B", (7, 2), "lora_B"), Slot("score", (3, 9), "head")))).slots
    (Slot(name='q.lora_B', shape=(2, 2), role='gram'),)

    Raises:
        ValueError: there is no such statistic, or the adapter has nothing that it is of.
    """
    if name not in STATISTICS:
        raise ValueError(f"there is no statistic {name!r}; expected one of {', '.join(STATISTICS)}")
    match name:
        case "fisher":
            slots = tuple(Slot(slot.name, slot.shape, name) for slot in space.slots)
        case "gram":
            slots = tuple(Slot(slot.name, (slot.shape[1],) * 2, name) for slot in gram_slots(space))
        case _:
            slots = tuple(
                Slot(slot.name, (slot.shape[1] + 1 + slot.shape[0], slot.shape[1] + 1), name)
                for slot in head_slots(space)
            )
    if name == "gram" and json.loads(space.config or "{}").get("use_dora"):
        raise ValueError("'gram' cannot be measured with use_dora, which gives each B other inputs than the data's")
    if not slots:
        what = "the B of linear layers' LoRA, and this adapter has none"
        if name == "head":
            what = "one linear layer that is trained as a head, and this adapter has none or several"
        raise ValueError(f"{name!r} is of {what}; choose another strategy")
    return Space(slots, space.config, space.base)


def gram_slots(space: Space) -> tuple[Slot, ...]:
    """The slots whose inputs have a Gram: each B of a linear layer's LoRA."""
    return tuple(slot for slot in space.slots if slot.role == "lora_B" and len(slot.shape) == 2)


def head_slots(space: Space) -> tuple[Slot, ...]:
    """The slot that is the weight of the linear head; none where no matrix, or more than one, is trained as a head."""
    found = tuple(slot for slot in space.slots if slot.role == "head" and len(slot.shape) == 2)
    return found if len(found) == 1 else ()


def check_statistic(name: str, space: Space, vector: Float[Tensor, " s"]) -> None:
    """Pass where a finite vector can be this statistic of an adapter.

    Raises:
        ValueError: it has another size, a Fisher information is negative, or a Gram is not symmetric and positive
            semi-definite but for the rounding of float32.
    """
    own = statistic_space(name, space)
    if tuple(vector.shape) != (own.numel,):
        raise ValueError(f"{name!r}: expected shape ({own.numel},), got {tuple(vector.shape)}")
    if name == "fisher":
        if vector.numel() and (lowest := float(vector.min())) < 0:
            raise ValueError(f"'fisher': expected at least 0 everywhere, got {lowest:g}")
        return
    for slot in own.slots:
        if not slot.numel:
            continue
        moments = own.view(vector, slot.name).double()
        gram = moments[: slot.shape[1]]
        trace = float(gram.trace())
        if float((gram - gram.T).abs().max()) > _ROUNDING * max(trace, 0.0):
            raise ValueError(f"{name!r} of {slot.name!r}: expected a symmetric matrix")
        if name == "head":
            gram = gram - _explained(slot.name, moments)
        if (lowest := float(torch.linalg.eigvalsh(gram)[0])) < -_ROUNDING * max(trace, 0.0):
            raise ValueError(f"{name!r} of {slot.name!r}: expected eigenvalues of at least 0, got {lowest:g}")


def _explained(name: str, moments: Float[Tensor, "rows width"]) -> Float[Tensor, "width width"]:
    """What of a head's second moments lies between classes: sum_y b_y b_y^T / p_y, of mean input b_y / p_y each.

    What is left of the moments lies within classes, and is one of squares again.

    Raises:
        ValueError: shares of classes p_y, the last column, do not add up to one, or their sums not to the whole.
    """
    width = moments.shape[1]
    gram, sums = moments[:width], moments[width:]
    shares, size = sums[:, -1], max(float(gram.trace()), 0.0)
    if not size and not moments.any():
        return torch.zeros_like(gram)
    if abs(float(gram[-1, -1]) - 1) > _ROUNDING or float(shares.min()) < 0:
        raise ValueError(f"'head' of {name!r}: expected shares of classes that add up to 1")
    if float((sums.sum(0) - gram[-1]).abs().max()) > _ROUNDING * len(sums) * max(size, 1.0):
        raise ValueError(f"'head' of {name!r}: expected classes whose sums add up to the whole")
    there = sums[shares > 0]
    if float(sums[shares <= 0].abs().sum()) > 0:
        raise ValueError(f"'head' of {name!r}: expected nothing of a class without examples")
    return (there / there[:, -1:]).T @ there


def check_present(needs: Collection[str], space: Space, statistics: Mapping[str, Tensor]) -> None:
    """Pass where an update has the statistics that a strategy needs.

    Raises:
        ValueError: one is not there, or has another size.
    """
    for name in sorted(needs):
        numel = statistic_space(name, space).numel
        shape = tuple(statistics[name].shape) if name in statistics else None
        if shape != (numel,):
            came = "none" if shape is None else f"shape {shape}"
            raise ValueError(f"expected an update with the statistic {name!r} of shape ({numel},), got {came}")
