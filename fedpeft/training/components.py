"""Training the leading components of LoRA products alone, as a site does that has no room for all of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.adapters import AdaptedModel
from fedpeft.strategies import modules
from fedpeft.training.supermask import Direct


class Leading(Direct):
    """An adapter of which the first components of each product move, and all slots that are no factor of one.

    Component k of B A is column k of B times row k of A. Cho, Liu, Xu, Fahrezi and Joshi, 2024 (HetLoRA, arXiv
    2401.06432), cut the global adapter to a client's rank and fill what comes back with zeros, which shrinks what
    that client never had. Here the other components are frozen: they take part in the forward pass and get no delta.
    The product's scaling stays alpha / r of the whole, so nothing is to be folded in.

    Args:
        adapted: the model, whose adapter is set to the start.
        start: shape (d,).
        rank: how many components, at least 1.
    """

    def __init__(self, adapted: AdaptedModel, start: Float[Tensor, " d"], rank: int) -> None:
        super().__init__(adapted, start)
        named = dict(zip((slot.name for slot in adapted.space.slots), adapted.parameters(), strict=True))
        beyond, whole = slice(rank, None), slice(None)
        self._frozen = [
            (named[name], where, named[name].detach()[where].clone())
            for module in modules(adapted.space)
            for name, where in ((module.a, (beyond, whole)), (module.b, (whole, beyond)))
        ]

    def pull(self) -> None:
        """The frozen components have no gradient, so that no norm and no moment counts them."""
        for parameter, where, _ in self._frozen:
            if parameter.grad is not None:
                parameter.grad[where] = 0

    def push(self) -> None:
        """Weight decay moves what has no gradient, too: put it back."""
        with torch.no_grad():
            for parameter, where, start in self._frozen:
                parameter[where] = start
