"""What a merge has made, and the folder that it is written to."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from fedpeft.adapters import Adapter
from fedpeft.durable import write_durably
from fedpeft.merging.card import card
from fedpeft.merging.sources import Sources
from fedpeft.strategies import Context, modules, product_error

# Of more adapters than this the error is estimated, from so many random directions of each layer's input.
_FEW, _PROBES = 8, 64
_LABELS = "labels.json"


@dataclass(frozen=True, eq=False)
class Merged:
    """A merged adapter, and what it was made of.

    Args:
        adapter: what was made.
        how: the strategy's expression, or what was done instead.
        sources: the adapters.
        ctx: what they were merged into.
        delta: what the strategy found there, shape (d,).
        exact: the products are those of the mean, by construction.
        doubtful: slots of whole weights, such as a head, that the strategy took for changes from zero.
    """

    adapter: Adapter
    how: str
    sources: Sources
    ctx: Context
    delta: Float[Tensor, " d"]
    exact: bool = False
    doubtful: tuple[str, ...] = ()

    def product_error(self) -> float | None:
        """How far the LoRA products are from the weighted mean of the adapters', of the size of that mean.

        From nine adapters on it is an estimate from random directions, and 0 of what is exact by construction. Each
        folder is read once more.

        Returns:
            None where there is no LoRA product.
        """
        if not modules(self.ctx.space):
            return None
        few = len(self.sources) <= _FEW
        if self.exact and not few:
            return 0.0
        return product_error(self.sources, self.delta, self.ctx, probes=None if few else _PROBES)

    def save(self, folder: Path, *, force: bool = False) -> None:
        """Write the folder that `PeftModel.from_pretrained` loads, with a README.md that says how it was made.

        Names of classes, where the adapters have a labels.json, are kept.

        Args:
            folder: to make.
            force: write over what is there.

        Raises:
            FileExistsError: the folder is there already, and not empty; or it is one of those that were merged.
        """
        check_free(folder, [row.folder for row in self.sources.all], force=force)
        self.adapter.save(folder)
        write_durably(folder / "README.md", card(self.adapter, self.how, self.sources, self.ctx.seed).encode())
        if self.sources.labels is None:
            (folder / _LABELS).unlink(missing_ok=True)
        else:
            write_durably(folder / _LABELS, json.dumps(list(self.sources.labels), indent=1).encode())


def check_free(folder: Path, read: Iterable[Path], *, force: bool) -> None:
    """Pass where a merged adapter may be written to a folder.

    Args:
        folder: to be written.
        read: the folders that are merged, which are never written over.
        force: it may be there already.

    Raises:
        FileExistsError: it may not.
    """
    if any(folder.resolve() == other.resolve() for other in read):
        raise FileExistsError(f"{folder} is one of the adapters that are merged; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a folder")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise FileExistsError(
            f"{folder} is there already; choose another folder, or write over it with force (--force)"
        )
