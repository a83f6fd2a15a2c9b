"""What the updates that a round has counted come to: the merged delta, and how far it is from their mean product."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft import codecs
from fedpeft.errors import QuorumError
from fedpeft.federation.journal import Journal, Record
from fedpeft.federation.plan import Plan
from fedpeft.federation.pools import Pools
from fedpeft.federation.replies import Replies
from fedpeft.space import Space
from fedpeft.strategies import Context, Update, modules, product_error
from fedpeft.strategies.mapped import Mapped

_PROBES = 8  # for a few per cent of accuracy, at the cost of reading the updates once more


@dataclass(frozen=True, eq=False)
class Counted:
    """The counted updates of one round, read from the journal whenever they are needed.

    Args:
        plan: the rules.
        space: of the adapter.
        journal: holds the payloads.
        replies: reads them.
        public: the adapter that the round began at.
        number: of the round.
        records: of the updates, in the order in which they are folded.
    """

    plan: Plan
    space: Space
    journal: Journal
    replies: Replies
    public: Float[Tensor, " d"]
    number: int
    records: Sequence[Record]

    def merged(self) -> Float[Tensor, " d"]:
        """What the strategy makes of the updates, in node order: it has the same bits however replies came.

        Where updates of several rounds carry different slots, each slot is merged from those that carry it.

        Raises:
            QuorumError: the update of the plan's root was not counted.
        """
        bases = frozenset(record["base"] for record in self.records)
        carriers = self._carriers(bases)
        if carriers.keys() <= {bases}:
            return self._merge(self.records)
        merged = torch.zeros_like(self.public)
        for bases, slots in carriers.items():
            found = self._merge([record for record in self.records if record["base"] in bases])
            for name in slots:
                self.space.view(merged, name).copy_(self.space.view(found, name))
        return merged

    def _merge(self, records: Sequence[Record]) -> Float[Tensor, " d"]:
        ctx = Context(self.space, self.public, self.plan.seed, self.number, self._told())
        return self.plan.strategy.merge(self._pooled(records) or self._updates(records), ctx)

    def _carriers(self, bases: Collection[int]) -> dict[frozenset[int], list[str]]:
        """Slots by those of these rounds whose updates carry them; what none carries is left out."""
        codec, carriers = self.plan.update_codec, dict[frozenset[int], list[str]]()
        carried = {base: codec.carried(self.space, codecs.Context(self.plan.seed, base)).slots for base in bases}
        for slot in self.space.slots:
            if carrying := frozenset(base for base in bases if slot in carried[base]):
                carriers.setdefault(carrying, []).append(slot.name)
        return carriers

    def product_error(self, merged: Float[Tensor, " d"]) -> float | None:
        """How far the merged LoRA products are from the mean of the sites', estimated along a few directions.

        None where there are no such products, or updates did not all begin at one adapter.
        """
        if not modules(self.space) or self.plan.buffer or self.plan.settings.supermask:
            return None
        ctx = Context(self.space, self.public, self.plan.seed, self.number)
        error = product_error(self._updates(self.records, statistics=False), merged, ctx, probes=_PROBES)
        return error if math.isfinite(error) else None

    def _told(self) -> dict[str, Tensor]:
        """The root's update, which is not merged: the others are measured by it."""
        if not self.plan.root:
            return {}
        for record in self.records:
            if record["node"] == self.plan.root:
                return {"root": self._read(record, False).delta}
        raise QuorumError(f"the update of the root, {self.plan.root!r}, was not counted, and the others go by it")

    def _updates(self, records: Sequence[Record], statistics: bool = True) -> Sequence[Update]:
        merged = [record for record in records if record["node"] != self.plan.root]
        return Mapped(merged, lambda record: self._read(record, statistics))

    def _pooled(self, records: Sequence[Record]) -> Sequence[Update]:
        """The updates, summed before they are decoded; none where the strategy or the codec needs each for itself."""
        pools = Pools()
        for record in records if self.plan.strategy.averaging else ():
            node, base = record["node"], record["base"]
            sketch = self.replies.sketch(node, base)
            if sketch is None:
                return ()
            values = sketch.values(self.replies.parts(node, self.journal.get(record["payload"]), base))
            pools.add(sketch, values, record["weight"], self._factor(record))
        return pools

    def _factor(self, record: Record) -> float:
        """What an update to an earlier round's task is multiplied by."""
        return 1 / math.sqrt(1 + self.number - record["base"])

    def _read(self, record: Record, beside: bool) -> Update:
        sent = self.replies.read(record["node"], self.journal.get(record["payload"]), record["base"])
        if record["base"] != self.number:
            sent = sent * self._factor(record)
        statistics = {
            name: self.replies.read_statistic(name, record["node"], self.journal.get(digest), record["base"])
            for name, digest in (record["statistics"] if beside else {}).items()
        }
        return Update(sent, record["weight"], statistics)
