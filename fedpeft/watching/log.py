"""Structured logs: one JSON object a line."""

import contextlib
import json
import logging
import logging.handlers
import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from fedpeft.errors import ConfigError
from fedpeft.federation.events import Event, Happening
from fedpeft.watching.words import one_line

_FACTS: Mapping[Happening, tuple[str, ...]] = {
    Happening.CONNECTED: ("version",),
    Happening.DISCONNECTED: ("why",),
    Happening.REJECTED: ("why",),
    Happening.WORKING: ("state",),
    Happening.WAITING: ("connected", "needed"),
    Happening.OPENED: ("cohort",),
    Happening.ASKED: ("down_bytes",),
    Happening.COUNTED: ("up_bytes", "weight", "loss", "train_s", "encode_s", "chosen"),
    Happening.REFUSED: ("up_bytes", "why"),
    Happening.ALARM: ("why",),
    Happening.FAILED: ("why",),
    Happening.COMMITTED: (
        *("loss", "accuracy", "train_loss", "learning_rate", "up_bytes", "down_bytes", "counted", "refused"),
        "product_error",
        "left_out",
        *("train_s", "encode_s", "fold_s", "evaluate_s", "round_s"),
    ),
    Happening.FINISHED: (),
}
_LEVELS = {
    Happening.WORKING: logging.DEBUG,
    Happening.DISCONNECTED: logging.WARNING,
    Happening.REJECTED: logging.WARNING,
    Happening.REFUSED: logging.WARNING,
    Happening.FAILED: logging.ERROR,
    Happening.ALARM: logging.ERROR,
}
_SITE_FAILED = re.compile(r"\bfailed: \w+")


class Log:
    """Writes the events that it is told of as lines of JSON; of their facts only those that it knows by name.

    Args:
        handler: of stdlib `logging`; where the lines go.
        level: of `logging`; events below it are left out.
    """

    def __init__(self, handler: logging.Handler, level: int = logging.INFO) -> None:
        handler.setFormatter(_Line())
        self._handler = handler
        # A logger of its own: what the process sets up for its other loggers neither hides nor repeats these lines.
        self._logger = logging.Logger("fedpeft.events", level)
        self._logger.addHandler(handler)

    @classmethod
    def to_file(cls, path: Path, level: int = logging.INFO, largest_bytes: int = 16 << 20, kept: int = 8) -> "Log":
        """Lines at the end of a file; a full one becomes `path.1`, and the oldest goes.

        Args:
            path: of the file; its folder is made.
            level: of `logging`.
            largest_bytes: of one file.
            kept: older files.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls(_File(path, maxBytes=largest_bytes, backupCount=kept, encoding="utf-8"), level)
        except OSError as error:
            raise ConfigError(f"the log file {path} cannot be written: {error.strerror}") from None

    @classmethod
    def to_stream(cls, stream: TextIO = sys.stderr, level: int = logging.INFO) -> "Log":
        """Lines on an open stream, which stays open."""
        return cls(_Stream(stream), level)

    def __call__(self, event: Event) -> None:
        """Write one line; it has left the process when this returns.

        Raises:
            OSError: it could not be written.
        """
        level = _LEVELS.get(event.kind, logging.INFO)
        self._logger.log(level, event.kind.value, extra={"fedpeft": event})

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            self._handler.close()


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event: Event = record.__dict__["fedpeft"]
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event.kind.value,
            "node": one_line(event.node),
            "round": event.round,
        }
        facts = {name: _plain(event.facts[name]) for name in _FACTS[event.kind] if name in event.facts}
        return json.dumps(line | facts, allow_nan=False)


def _plain(fact: object) -> Any:
    """A number or a short text; JSON has no word for a number that is not finite."""
    if fact is None or isinstance(fact, int):
        return fact
    if isinstance(fact, float):
        return fact if math.isfinite(fact) else None
    text = one_line(fact)
    # A site's exception may quote an example, so of what a site says of its own failure only the kind is logged.
    own_words = _SITE_FAILED.search(text)
    return text[: own_words.end()] if own_words else text


class _File(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        """A last line that a kill or a full disk cut short is ended, so that the next is a line of its own."""
        path = Path(self.baseFilename)
        if path.is_file() and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        stream, self.stream = self.stream, None  # type: ignore[assignment]
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
        _raise_again()


class _Stream(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        _raise_again()


def _raise_again() -> None:
    if error := sys.exc_info()[1]:
        raise error
