"""SIGTERM and Ctrl-C: what is at hand is finished or left whole, then the process ends."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from fedpeft.errors import StoppedError


class Stopping:
    """While the context lasts, the first SIGTERM or SIGINT asks for an orderly end; a second one ends at once."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None

    def by(self, stop: Callable[[], None]) -> None:
        """Call `stop` on a thread of its own when the time comes; before this is said, StoppedError is raised."""
        self._stop = stop

    def __enter__(self) -> "Stopping":
        self._before = {number: signal.signal(number, self._asked) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if self._stop is None:
            raise StoppedError("stopped before the run was taken up")
        threading.Thread(target=self._stop, name="stop").start()
