"""What a site lets a server ask of it. The server sends no code; a task outside the policy is refused."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from fedpeft._proto import federation_pb2 as pb
from fedpeft.errors import ConfigError, Reason, RefusedError
from fedpeft.expressions import called
from fedpeft.training import Settings

PROTECTIONS = ("masking", "noise")
_BOUNDED = ("local_steps", "batch_size", "learning_rate")
SETTINGS = tuple(field.name for field in fields(Settings) if field.name not in _BOUNDED)


@dataclass(frozen=True)
class Policy:
    """The bounds of what a site does for a server; the default allows what the program can do.

    A codec or a strategy is allowed when each class in its expression is named: `ErrorFeedback` and `Ternary` allow
    `ErrorFeedback(Ternary(density=0.2))`. "*" allows everything.

    Args:
        base_sha256: the only base model, hexadecimal; "" for the one that the site has loaded.
        codecs: names of the classes that may encode the site's updates.
        broadcasts: names of the classes that may encode the steps of the global adapter.
        strategies: names of the classes that may merge updates.
        statistics: what may be measured and sent beside an update ("fisher", "gram", "head"), which tells more of the
            data than the update does.
        least_examples: a statistic is measured on no fewer, and leaves out classes that have fewer: of a single example
            it would tell what the model makes of it.
        most_examples: a statistic is measured on no more, drawn anew in each round; at least `least_examples`.
        settings: names of the settings of local training that may have another value than their default
            (`fedpeft.training.Settings`; those that have a bound below are not among them).
        most_local_steps: in a round.
        largest_batch_size: examples a step.
        largest_learning_rate: of local training.
        min_cohort: the fewest sites whose updates are merged with this one's, this one included.
        privacy: protections that must be in force: "masking" (secure aggregation), "noise" (differential privacy).

    Raises:
        ValueError: a number is out of range, or a protection or a setting is unknown.
    """

    base_sha256: str = ""
    codecs: tuple[str, ...] = ("*",)
    broadcasts: tuple[str, ...] = ("*",)
    strategies: tuple[str, ...] = ("*",)
    statistics: tuple[str, ...] = ("*",)
    least_examples: int = 1
    most_examples: int = 1 << 32
    settings: tuple[str, ...] = ("*",)
    most_local_steps: int = 1 << 32
    largest_batch_size: int = 1 << 32
    largest_learning_rate: float = math.inf
    min_cohort: int = 1
    privacy: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (
            min(self.most_local_steps, self.largest_batch_size, self.min_cohort, self.least_examples) < 1
            or not self.largest_learning_rate > 0
        ):
            raise ValueError(
                "most_local_steps, largest_batch_size, min_cohort and least_examples must be at least 1, "
                "largest_learning_rate positive"
            )
        if self.most_examples < self.least_examples:
            raise ValueError(
                f"most_examples must be at least least_examples, {self.least_examples}, got {self.most_examples}"
            )
        for rule, known in (("privacy", PROTECTIONS), ("settings", (*SETTINGS, "*"))):
            if unknown := set(getattr(self, rule)) - set(known):
                raise ValueError(f"{rule}: expected some of {list(known)}, got {sorted(unknown)}")

    def check(self, task: pb.Task, base_sha256: str) -> None:
        """Pass when a site with this base model may work on the task.

        Raises:
            RefusedError: names the rule, what it allows and what was asked.
        """
        if self.base_sha256 and self.base_sha256 != base_sha256:
            raise _refused("base_sha256", f"{self.base_sha256[:16]}...", f"{base_sha256[:16]}... loaded here")
        _check_names("codecs", self.codecs, task.codec)
        for step in task.broadcasts:
            if step.from_round:  # the whole adapter always comes in plain fp16
                _check_names("broadcasts", self.broadcasts, step.codec)
        _check_names("strategies", self.strategies, task.strategy)
        if "*" not in self.statistics and (more := set(task.statistics) - set(self.statistics)):
            raise _refused("statistics", ", ".join(self.statistics) or "none", ", ".join(sorted(more))[:200])
        self._check_settings(task.settings)
        if task.merged < self.min_cohort:
            raise _refused("min_cohort", f"at least {self.min_cohort} sites", f"a merge of {task.merged}")
        if missing := set(self.privacy) - set(task.privacy):
            raise _refused(
                "privacy", f"{', '.join(self.privacy)} in force", f"a task without {', '.join(sorted(missing))}"
            )

    def _check_settings(self, asked: pb.Settings) -> None:
        if asked.local_steps > self.most_local_steps:
            raise _refused("most_local_steps", f"at most {self.most_local_steps}", f"{asked.local_steps}")
        if asked.batch_size > self.largest_batch_size:
            raise _refused("largest_batch_size", f"at most {self.largest_batch_size}", f"{asked.batch_size}")
        if not asked.learning_rate <= self.largest_learning_rate:
            raise _refused(
                "largest_learning_rate", f"at most {self.largest_learning_rate:g}", f"{asked.learning_rate:g}"
            )
        plain = Settings()
        for name in () if "*" in self.settings else SETTINGS:
            value, default = getattr(asked, name), getattr(plain, name)
            if name not in self.settings and value not in ("", default):  # an older server leaves words out
                others = f", and others of {', '.join(self.settings)}" if self.settings else ""
                raise _refused("settings", f"{name}: {default}{others}", f"{name}: {str(value)[:200]}")


def _check_names(rule: str, allowed: Sequence[str], expression: str) -> None:
    if "*" in allowed:
        return
    try:
        names = called(expression)
    except ConfigError as error:
        raise RefusedError(Reason.POLICY, f"{rule}: {error}") from None
    if not names or names - set(allowed):
        other = ", ".join(sorted(names - set(allowed))) or "nothing"
        raise _refused(rule, ", ".join(allowed) or "none", f"{other} in {expression[:200]!r}")


def _refused(rule: str, allowed: str, asked: str) -> RefusedError:
    return RefusedError(Reason.POLICY, f"{rule}: this site allows {allowed}, was asked for {asked}")
