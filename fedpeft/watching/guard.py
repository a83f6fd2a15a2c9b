"""What becomes of a watcher that fails: the run goes on, and the operator is told."""

import contextlib
import threading
from collections.abc import Callable

from fedpeft.federation.events import Event, Happening, Watch
from fedpeft.watching.words import one_line


class Guarded:
    """A watch that never raises: it says the first failure, and the next one only after it was well again in between.

    It is well again once it has taken an event of a kind that it failed at: a log that leaves a kind out takes it on
    a full disk, too.

    Args:
        watch: may fail, as a log does on a full disk; it is told of every event all the same.
        say: told that it failed, and why; called from the thread that told the event.
    """

    def __init__(self, watch: Watch, say: Callable[[str], object]) -> None:
        self._watch, self._say = watch, say
        self._lock = threading.Lock()
        self._failing: set[Happening] = set()

    def __call__(self, event: Event) -> None:
        """Tell the watch of an event."""
        try:
            self._watch(event)
        except Exception as error:
            with self._lock:
                first = not self._failing
                self._failing.add(event.kind)
            if first:
                name = getattr(self._watch, "__qualname__", type(self._watch).__name__)
                text = f"{name} failed, the run goes on without: {type(error).__name__}: {one_line(error)}"
                with contextlib.suppress(Exception):
                    self._say(text)
        else:
            with self._lock:
                if event.kind in self._failing:
                    self._failing.clear()
