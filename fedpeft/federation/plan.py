"""What a run does, whatever carries it."""

import math
from dataclasses import dataclass, field
from typing import Literal

from fedpeft.codecs import Codec, Context, ErrorFeedback, Identity
from fedpeft.federation.optimizer import ServerOptimizer
from fedpeft.space import Space
from fedpeft.strategies import Mean, Strategy
from fedpeft.training import Settings

ROUNDS_SEEN = 64  # of a codec that sends slots by turns


@dataclass(frozen=True)
class Plan:
    """The rules of a run.

    Args:
        rounds: rounds in all.
        seed: of all randomness.
        codec: for the clients' updates.
        broadcast: for the steps of the global adapter.
        strategy: merges updates.
        optimizer: the server's step.
        settings: local training; the learning rate is the first round's.
        schedule: of the clients' learning rate over rounds: "cosine" falls to a tenth of it, "linear" to zero.
        sites: how many take part; 0: as many as are there when a round opens.
        cohort: clients asked each round; 0 for all.
        quorum: fraction of them that must be counted, in (0, 1].
        buffer: 0: a round waits for all who are asked (or its deadline); K: it closes with K updates, whichever they
            are, while the other clients work on, and an update that answers an older round counts for less.
        deadline_s: seconds that a round waits for replies.
        root: the node that trains on data which the server trusts, "" for none; it is asked in every round, and the
            others' updates are not merged with its own but measured by it (`FLTrust`).
        largest_norm: an update of a larger L2 norm is refused.
        largest_weight: an update of a larger weight is refused.

    Raises:
        ValueError: a number is out of range, or the strategy does not fit the others.
    """

    rounds: int
    seed: int = 0
    codec: Codec | ErrorFeedback = field(default_factory=Identity)
    broadcast: Codec = field(default_factory=lambda: Identity("float16"))
    strategy: Strategy = field(default_factory=Mean)
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    settings: Settings = field(default_factory=Settings)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    sites: int = 0
    cohort: int = 0
    quorum: float = 1.0
    buffer: int = 0
    deadline_s: float = 3600.0
    root: str = ""
    largest_norm: float = 1e4
    largest_weight: float = 1e7

    def __post_init__(self) -> None:
        if self.settings.start == "own" and not isinstance(self.codec, ErrorFeedback):
            raise ValueError(
                f"start: 'own' adds what error feedback has kept; expected ErrorFeedback, got {self.codec!r}"
            )
        for name, low, high in (
            ("rounds", 1, 1 << 31),
            ("seed", -(1 << 63), (1 << 63) - 1),
            ("sites", 0, 1 << 31),
            ("cohort", 0, 1 << 31),
            ("quorum", 1e-9, 1),
            ("buffer", 0, 1 << 31),
            ("deadline_s", 0, math.inf),
            ("largest_norm", 0, math.inf),
            ("largest_weight", 0, math.inf),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"schedule must be 'constant', 'cosine' or 'linear', got {self.schedule!r}")
        if self.strategy.anchored and self.buffer:
            raise ValueError(
                f"{self.strategy} merges adapters that began at one start, and with buffer: {self.buffer} they do not; "
                "set buffer: 0 or take a strategy of deltas"
            )
        if self.update_codec.reads and self.buffer:
            raise ValueError(
                f"{self.update_codec} reads the round's adapter, and with buffer: {self.buffer} updates answer several "
                "rounds; set buffer: 0 or take another codec"
            )
        self._check_root()
        if why := self.strategy.offline:
            raise ValueError(f"{self.strategy} cannot merge in a run: {why}; it is for merging adapters at hand")
        weights = self.strategy.needs or (self.strategy.anchored and not self.strategy.scores)
        if self.settings.supermask and weights:
            raise ValueError(f"{self.strategy} merges weights, and a supermask has scores; set supermask: 0")
        if self.strategy.scores and not self.settings.supermask:
            raise ValueError(f"{self.strategy} merges the scores of a supermask; set training.supermask")
        if "before" in self.broadcast.reads:
            raise ValueError(f"broadcast: {self.broadcast} reads the last step, and this one is only about to be made")
        if self.strategy.settles and self.optimizer.expression.replace(" ", "") not in ("SGD(lr=1.0)", "SGD(lr=1)"):
            raise ValueError(
                f"{self.strategy} says where parameters shall be, and {self.optimizer.expression} would go elsewhere; "
                "set server_optimizer: SGD(lr=1.0), and put Scaled(..., factor) inside where longer steps are wanted"
            )
        asked = self.buffer or self.cohort or self.sites
        if asked and asked < self.least:
            beside = " besides the root's" if self.root else ""
            raise ValueError(
                f"{self.strategy} merges at least {self.strategy.least} updates{beside}, and {asked} are asked for"
            )

    def _check_root(self) -> None:
        if self.strategy.rooted and not self.root:
            raise ValueError(
                f"{self.strategy} needs a delta trained on data that the server trusts; name a site with some as root"
            )
        if self.root and not self.strategy.rooted:
            raise ValueError(f"{self.strategy} goes by no root; take FLTrust(), or leave out root: {self.root}")
        if self.root and self.buffer:
            raise ValueError(
                f"{self.strategy} takes the root's update of the same round, and with buffer: {self.buffer} updates "
                "answer several; leave out the buffer"
            )

    @property
    def update_codec(self) -> Codec:
        """What decodes an update: the codec inside error feedback."""
        return self.codec.codec if isinstance(self.codec, ErrorFeedback) else self.codec

    @property
    def least(self) -> int:
        """The fewest updates that a round can do with."""
        return self.strategy.least + bool(self.root)

    def learning_rate(self, round_number: int) -> float:
        """The clients' learning rate in a round, from 1."""
        done = (round_number - 1) / self.rounds
        match self.schedule:
            case "constant":
                return self.settings.learning_rate
            case "linear":
                return self.settings.learning_rate * (1 - done)
            case "cosine":
                return self.settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def personal(self, space: Space) -> frozenset[str]:
        """Names of the slots that sites train and never send, so that each goes on with its own."""
        if self.settings.start != "own" or self.settings.slots != "all":
            return frozenset()
        rounds = range(1, min(self.rounds, ROUNDS_SEEN) + 1)
        sent = {s.name for n in rounds for s in self.update_codec.carried(space, Context(self.seed, n)).slots}
        return frozenset(slot.name for slot in space.slots if slot.name not in sent)

    def needed(self, asked: int) -> int:
        """How many clients must be counted where so many are asked."""
        expected = self.buffer or self.cohort or self.sites or asked
        return max(self.least, math.ceil(self.quorum * expected - 1e-9))
