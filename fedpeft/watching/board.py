"""Event files for TensorBoard: one record a round."""

import contextlib
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError
from fedpeft.federation.events import Event, Happening
from fedpeft.federation.transport import NodeId

_CURVES = {
    **{
        name: name
        for name in ("loss", "accuracy", "train_loss", "learning_rate", "product_error", "up_bytes", "down_bytes")
    },
    "round_s": "seconds",
}


class Board:
    """Writes a run's curves where TensorBoard finds them; rounds that the folder holds already are left alone.

    Args:
        folder: of event files; made if it does not exist.

    Raises:
        ConfigError: tensorboard is not installed, or the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise ConfigError(
                "event files for TensorBoard need tensorboard: pip install 'fedpeft[tensorboard]'"
            ) from None
        self._folder, self._events, self._summaries, self._records = folder, event_pb2, summary_pb2, RecordWriter
        self._lock = threading.Lock()
        self._losses: dict[NodeId, tuple[int, object]] = {}
        self._writer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(folder.glob("events.out.tfevents.*"))
            steps = [event.step for path in paths for event in EventFileLoader(str(path)).Load()]
        except OSError as error:
            raise ConfigError(f"{folder} cannot hold event files: {error.strerror}") from None
        self._last = max(steps, default=0)

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rounds of a resumed run that were committed but not written.

        Args:
            rows: of metrics.jsonl.

        Raises:
            OSError: they could not be written.
        """
        with self._lock:
            for row in rows:
                self._write(row)

    def __call__(self, event: Event) -> None:
        """Write a round when it is committed.

        Raises:
            OSError: it could not be written.
        """
        with self._lock:
            if event.kind is Happening.COUNTED:
                self._losses[event.node] = event.round, event.facts.get("loss")
            elif event.kind is Happening.COMMITTED:
                self._write(event.facts)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._drop()

    def _write(self, row: Mapping[str, Any]) -> None:
        if row["round"] <= self._last:
            return
        curves = {tag: row.get(name) for name, tag in _CURVES.items()}
        for node, facts in row.get("sites", {}).items():
            number, loss = self._losses.get(node, (0, None))
            curves[f"sites/{node}/loss"] = loss if number == row["round"] else None
            curves[f"sites/{node}/weight"] = facts.get("weight")
        points = [
            self._summaries.Summary.Value(tag=tag, simple_value=value)
            for tag, value in curves.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        summary = self._summaries.Summary(value=points)
        try:
            self._append(self._events.Event(wall_time=time.time(), step=row["round"], summary=summary))
        except OSError:
            self._drop()
            raise
        self._last = row["round"]

    def _append(self, event: Any) -> None:
        if self._writer is None:
            stem = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
            free = (path for i in itertools.count() if not (path := self._folder / f"{stem}.{i}").exists())
            self._writer = self._records(next(free).open("xb"))
            self._writer.write(
                self._events.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
            )
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def _drop(self) -> None:
        """Close the file, whose end may be torn; the next round begins another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
