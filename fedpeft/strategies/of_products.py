"""What strategies declare that give LoRA products new factors."""

from fedpeft.space import Space
from fedpeft.strategies.base import Strategy
from fedpeft.strategies.lora import modules, products_of


class OfProducts(Strategy):
    """A strategy that merges products B A, and says where both factors of each shall be: one without is half of it."""

    anchored = True
    settles = True

    def check_space(self, space: Space) -> None:
        """Pass where there are products to merge.

        Raises:
            ValueError: there is none, or only one factor of each.
        """
        super().check_space(space)
        check_products(self, space)

    def settled(self, space: Space) -> frozenset[str]:
        """Both factors of each product."""
        return products_of(space)


def check_products(strategy: Strategy, space: Space) -> None:
    """Pass where a strategy of products finds some.

    Raises:
        ValueError: there is none, or only one factor of each.
    """
    if not modules(space):
        roles = ", ".join(sorted({slot.role for slot in space.slots}))
        raise ValueError(
            f"{strategy} merges products B A of LoRA, and these slots ({roles}) hold no pair of linear factors; give "
            "it both, as by_slot's '*.lora_*' does, or take a strategy of deltas"
        )
