"""A fedpeft command as a process of its own, forked from one that has imported what takes seconds to import.

gRPC must not be loaded before a fork: a command imports it when it needs it, and nothing that is imported before does.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

SECONDS = 240.0  # that a test waits for what must happen, on a machine that others use too

_forks, _fresh = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
_forks.set_forkserver_preload(
    [
        __name__,
        "fedpeft.cli",
        "fedpeft.preparation",
        "fedpeft.report",
        "fedpeft.run",
        "peft",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
    ]
)


def nothing() -> None:
    """What a process does before its command when nothing is asked of it."""


class Program:
    """One command, started as often as a test likes; what it prints is added to a file.

    Args:
        log: the file.
        arguments: of the command line.
    """

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log, self._arguments = log, [str(each) for each in arguments]
        self._process: BaseProcess | None = None

    @property
    def ended(self) -> bool:
        """There is no process, or it has come to its end."""
        return self._process is None or self._process.exitcode is not None

    @property
    def printed(self) -> str:
        """By all its processes."""
        return self.log.read_text() if self.log.exists() else ""

    def start(self, fresh: bool = False, first: Callable[[], None] = nothing) -> None:
        """Begin a new process.

        Args:
            fresh: with an interpreter of its own, begun anew and taken down when the command ends.
            first: called in it before the command.
        """
        assert self.ended
        context = _fresh if fresh else _forks
        self._process = context.Process(target=_command, args=(first, self._arguments, self.log), daemon=True)
        self._process.start()

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code; negative: the signal that ended it."""
        assert self._process is not None
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"it does not end: {self._arguments}\n{self.printed}"
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> int:
        """End it at once; its exit code is its own if it came to its end first."""
        self._signal(signal.SIGKILL)
        return self.wait()

    def _signal(self, number: int) -> None:
        if not self.ended:
            assert self._process is not None
            assert self._process.pid is not None
            os.kill(self._process.pid, number)


def _command(first: Callable[[], None], arguments: Sequence[str], log: Path) -> None:
    assert "grpc" not in sys.modules
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(printed, stream.fileno())
    os.close(printed)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    first()
    from fedpeft.cli import app

    app(arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(70)
