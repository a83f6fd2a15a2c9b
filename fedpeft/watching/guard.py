"""What becomes of a watcher that fails: the run goes on, and the operator is told."""

import contextlib
import threading
from collections.abc import Callable

from fedpeft.federation.events import Event, Watch
from fedpeft.watching.words import one_line


class Guarded:
    """A watch that never raises; the first failure in a row is said, later ones are not.

    Args:
        watch: may fail, as a log does on a full disk; it is told of every event all the same.
        say: told that it failed, and why; called from the thread that told the event.
    """

    def __init__(self, watch: Watch, say: Callable[[str], object]) -> None:
        self._watch, self._say = watch, say
        self._lock, self._failing = threading.Lock(), False

    def __call__(self, event: Event) -> None:
        """Tell the watch of an event."""
        try:
            self._watch(event)
        except Exception as error:
            if self._turned(failing=True):
                name = getattr(self._watch, "__qualname__", type(self._watch).__name__)
                text = f"{name} failed, the run goes on without: {type(error).__name__}: {one_line(error)}"
                with contextlib.suppress(Exception):
                    self._say(text)
        else:
            self._turned(failing=False)

    def _turned(self, failing: bool) -> bool:
        with self._lock:
            before, self._failing = self._failing, failing
        return failing and not before
