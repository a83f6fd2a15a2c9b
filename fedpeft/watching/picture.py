"""How a run stands, as a file in its folder that any process can read."""

import os
import socket
import time
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from fedpeft.errors import JournalError

NAME = "status.json"
STALE_S = 30.0  # a process that lives writes far more often

State: TypeAlias = Literal["running", "finished", "stopped"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="null")


class SitePicture(_Model):
    """How a site stands.

    Args:
        state: "expected", "rejected", "idle", "downloading", "training", "uploading" or "away".
        round: that its last counted update was of; 0 for none.
        loss: of that update, before training.
        up_bytes: of all its replies.
        down_bytes: of all its tasks.
        last_seen: in seconds since 1970; None for never.
        refusal: why its last refused reply was refused.
    """

    state: str = "expected"
    version: str = ""
    round: NonNegativeInt = 0
    loss: float | None = None
    up_bytes: NonNegativeInt = 0
    down_bytes: NonNegativeInt = 0
    last_seen: float | None = None
    refusal: str = ""


class Picture(_Model):
    """How a run stands; times are in seconds since 1970.

    Args:
        name: of the run.
        host: that the process runs on.
        pid: of the process there.
        started: when the process took the run up.
        updated: when this was written.
        ended: when the process let go of the run; None before.
        round: that was committed last.
        rounds: in all.
        loss: after that round.
        accuracy: after that round.
        finished: the last round is done.
        waiting: for whom a round waits before it opens; "" where none does.
        failure: why a round ended below quorum, the last time that one did.
        sites: by name.
    """

    name: str
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    started: float = Field(default_factory=time.time)
    updated: float = 0.0
    ended: float | None = None
    round: NonNegativeInt = 0
    rounds: NonNegativeInt
    loss: float | None = None
    accuracy: float | None = None
    finished: bool = False
    waiting: str = ""
    failure: str = ""
    sites: dict[str, SitePicture] = {}

    def state(self) -> State:
        """Whether the run goes on, as far as can be told from here."""
        if self.finished:
            return "finished"
        fresh = time.time() - self.updated < STALE_S
        here = self.host == socket.gethostname()
        return "running" if self.ended is None and fresh and (not here or _lives(self.pid)) else "stopped"


def write(folder: Path, picture: str) -> None:
    """Put a picture's JSON in place whole or not at all; unlike a journal, it may be lost with the machine's power."""
    scratch = folder / f"{NAME}.tmp"
    scratch.write_text(picture, encoding="utf-8")
    scratch.replace(folder / NAME)


def read(folder: Path) -> Picture:
    """The picture that a run's process wrote last.

    Raises:
        JournalError: there is none, or it is damaged.
    """
    path = folder / NAME
    try:
        return Picture.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise JournalError(f"{path} is missing: expected the folder of a run that a server began") from None
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        raise JournalError(
            f"{path} is damaged: {'.'.join(map(str, problem['loc']))} {problem['msg']}; the run's journal is not"
            " affected, and its server writes a new one"
        ) from None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
