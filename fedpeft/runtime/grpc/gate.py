"""How many may send at once: the others wait their turn, and who falls silent loses it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Who = TypeVar("Who")
Turn = Callable[[bool], None]


@dataclass
class _Place:
    turn: Turn
    seen: float


class Gate(Generic[Who]):
    """Places for senders of large messages; what is not let in costs the receiver nothing.

    Args:
        places: how many may send at once.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._places = places
        self._inside: dict[Who, _Place] = {}
        self._waiting: dict[Who, Turn] = {}

    def enter(self, who: Who, turn: Turn) -> None:
        """Wait for a place.

        Args:
            who: in place of what the same one waited for before.
            turn: told True when there is a place, False when it is taken away for a while; it is called under a lock,
                on anybody's thread, and must neither wait nor call back.
        """
        with self._lock:
            self._inside.pop(who, None)
            self._waiting.pop(who, None)
            self._waiting[who] = turn
            self._admit()

    def touch(self, who: Who) -> None:
        """Somebody inside is still sending."""
        with self._lock:
            if who in self._inside:
                self._inside[who].seen = time.monotonic()

    def leave(self, who: Who) -> None:
        """Give the place, or the wait for one, up."""
        with self._lock:
            self._inside.pop(who, None)
            self._waiting.pop(who, None)
            self._admit()

    def rotate(self, silent_s: float) -> None:
        """Let those who wait in, in place of those inside who gave no sign for so long."""
        with self._lock:
            until = time.monotonic() - silent_s
            silent = [who for who, place in self._inside.items() if place.seen < until]
            for who in silent[: len(self._waiting)]:
                turn = self._inside.pop(who).turn
                turn(False)
                self._waiting[who] = turn
            self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._inside) < self._places:
            who = next(iter(self._waiting))
            turn = self._waiting.pop(who)
            self._inside[who] = _Place(turn, time.monotonic())
            turn(True)
