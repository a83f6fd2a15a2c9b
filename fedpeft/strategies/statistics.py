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
    * "head": for each linear head, with shape (classes, in), the mean of u u^T over its inputs with a one added, u =
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
        what = "the B of linear layers' LoRA" if name == "gram" else "linear heads"
        raise ValueError(f"{name!r} is of {what}, and this adapter has none; choose another strategy")
    return Space(slots, space.config, space.base)


def gram_slots(space: Space) -> tuple[Slot, ...]:
    """The slots whose inputs have a Gram: each B of a linear layer's LoRA."""
    return tuple(slot for slot in space.slots if slot.role == "lora_B" and len(slot.shape) == 2)


def head_slots(space: Space) -> tuple[Slot, ...]:
    """The slots that are the weights of a linear head."""
    return tuple(slot for slot in space.slots if slot.role == "head" and len(slot.shape) == 2)


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
        gram = own.view(vector, slot.name)[: slot.shape[1]].double()
        if not slot.numel:
            continue
        trace = float(gram.trace())
        if float((gram - gram.T).abs().max()) > _ROUNDING * max(trace, 0.0):
            raise ValueError(f"{name!r} of {slot.name!r}: expected a symmetric matrix")
        if (lowest := float(torch.linalg.eigvalsh(gram)[0])) < -_ROUNDING * max(trace, 0.0):
            raise ValueError(f"{name!r} of {slot.name!r}: expected eigenvalues of at least 0, got {lowest:g}")


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
