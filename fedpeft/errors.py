"""The errors of fedpeft, drawn once.

A caller's wrong argument is a `ValueError`. What came over a wire, from a disk or from another process and
cannot be used is a `FedpeftError`:

    FedpeftError
    ├── ConfigError        an experiment's YAML, or an expression in it
    ├── SpaceError         two adapters (or base models) that are not of one space
    ├── DataError          a data source that is missing, empty or malformed
    ├── PayloadError       bytes that are not a valid payload; `.defect` says which rule they break
    ├── RefusedError       a valid message that may not be used now; `.reason` says why
    ├── JournalError       a run folder that cannot be read, or belongs to something else
    ├── IdentityError      a key, a certificate or a roster that cannot be used, or a site that is not who it says
    ├── UnreachableError   a peer that does not answer
    └── RunError           a run that cannot go on
        ├── QuorumError    too few usable replies before the deadline
        ├── SiteError      a site failed; carries the site's own traceback
        └── StoppedError   somebody asked for it to stop
"""

from enum import StrEnum


class FedpeftError(Exception):
    """Anything that came from outside the program and cannot be used."""


class ConfigError(FedpeftError):
    """An experiment's description is wrong; the message names the key and the nearest valid spelling."""


class SpaceError(FedpeftError):
    """Two adapters do not share a space; the message names the first slot that differs."""


class DataError(FedpeftError):
    """A data source is missing, empty or malformed; the message names the file and the row."""


class Defect(StrEnum):
    """Everything that can be wrong with the bytes of a payload (docs/wire-format.md has one line for each)."""

    EMPTY = "empty"
    TOO_LARGE = "too large"
    MALFORMED = "malformed"
    CHECKSUM = "checksum"
    VERSION = "version"
    FINGERPRINT = "fingerprint"
    RUN = "run"
    ROUND = "round"
    CODEC = "codec"
    SIZE = "size"
    MISSING_PART = "missing part"
    EXTRA_PART = "extra part"
    DUPLICATE_PART = "duplicate part"
    PART_SIZE = "part size"
    CODER = "coder"
    TABLE = "table"
    STREAM = "stream"
    PADDING = "padding"
    SYMBOL = "symbol"
    COUNT = "count"
    NON_FINITE = "non-finite"
    NORM = "norm"
    WEIGHT = "weight"
    STATISTIC = "statistic"


class PayloadError(FedpeftError):
    """Bytes that are not a valid payload.

    Args:
        defect: which rule the bytes break.
        detail: what was expected and what came.
    """

    def __init__(self, defect: Defect, detail: str) -> None:
        super().__init__(f"{defect.value}: {detail}")
        self.defect = defect


class Reason(StrEnum):
    """Why a node refused a message that was itself well formed."""

    LATE = "late"
    DUPLICATE = "duplicate"
    NOT_ASKED = "not asked"
    OTHER_RUN = "other run"
    OTHER_ROUND = "other round"
    OTHER_SPACE = "other space"
    STALE_ADAPTER = "stale adapter"
    BAD_PAYLOAD = "bad payload"
    POLICY = "policy"
    FAILED = "failed"


class RefusedError(FedpeftError):
    """A message that may not be used now; state is unchanged.

    Args:
        reason: the rule that refused it.
        detail: what was expected and what came.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason, self.detail = reason, detail


class JournalError(FedpeftError):
    """A run folder cannot be read, is in use, or belongs to another experiment."""


class IdentityError(FedpeftError):
    """A key, a certificate or a roster cannot be used, or a site is not who it says; the message names the file."""


class UnreachableError(FedpeftError):
    """A peer does not answer; another may, and this one later."""


class RunError(FedpeftError):
    """A run cannot go on; what was committed before stays."""


class QuorumError(RunError):
    """Too few usable replies arrived before the round's deadline."""


class SiteError(RunError):
    """A site failed while it worked on a task.

    Args:
        site: name of the site.
        trace: the traceback, as the site printed it.
    """

    def __init__(self, site: str, trace: str) -> None:
        super().__init__(f"site {site!r} failed:\n{trace.rstrip()}")
        self.site = site
        self.trace = trace


class StoppedError(RunError):
    """Somebody asked the run to stop; it can be taken up."""
