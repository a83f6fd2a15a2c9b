"""How many may send at once: the others wait their turn, and who falls silent loses it."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Who = TypeVar("Who")


class Gate(Generic[Who]):
    """Places for senders of large messages; what is not let in costs the receiver nothing.

    Args:
        places: how many may send at once.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._places = places
        self._inside: dict[Who, float] = {}
        self._waiting: dict[Who, Callable[[], None]] = {}

    def enter(self, who: Who, go: Callable[[], None]) -> None:
        """Call `go` as soon as there is a place."""
        with self._lock:
            self._inside.pop(who, None)
            self._waiting.pop(who, None)
            self._waiting[who] = go
        self._admit()

    def touch(self, who: Who) -> None:
        """Somebody inside is still sending."""
        with self._lock:
            if who in self._inside:
                self._inside[who] = time.monotonic()

    def leave(self, who: Who) -> None:
        """Give the place, or the wait for one, up."""
        with self._lock:
            self._inside.pop(who, None)
            self._waiting.pop(who, None)
        self._admit()

    def silent(self, seconds: float) -> list[Who]:
        """Who has been inside without a sign for so long while others wait."""
        with self._lock:
            until = time.monotonic() - seconds
            return [who for who, seen in self._inside.items() if seen < until] if self._waiting else []

    def _admit(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or len(self._inside) >= self._places:
                    return
                who = next(iter(self._waiting))
                go = self._waiting.pop(who)
                self._inside[who] = time.monotonic()
            go()
