"""A bad line between sites and their server: cut at any byte, silent for a while, in odd pieces.

It carries what it cannot read: mutual TLS goes through from end to end.
"""

import math
import select
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Self

_LARGEST_PIECE = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: a close sends RST, and what was queued is lost


@dataclass(frozen=True)
class Weather:
    """How bad a line is.

    Args:
        least: bytes that a connection carries before it ends, both ways together: the fewest.
        most: the most; what lies between is drawn evenly on a logarithmic scale.
        stalls: share of the pieces that wait.
        silence_s: seconds that a connection may stay open and carry nothing, before it ends.
    """

    least: int = 300
    most: int = 60_000
    stalls: float = 0.01
    silence_s: float = 4.0


class Proxy:
    """Listens on a port of loopback and carries connections to another until their fate ends them.

    Args:
        to: the server's port.
        seed: of everything that is drawn; a connection's fate follows from it and from the connection's number.
        weather: how bad the line is.
    """

    def __init__(self, to: int, seed: int, weather: Weather) -> None:
        self._to, self._seed, self._weather = to, seed, weather
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections, self.up_bytes, self.down_bytes = 0, 0, 0
        self.ends: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    def close(self) -> None:
        """End every connection."""
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._closing.is_set():
                near, _ = self._listener.accept()
                self.connections += 1
                fate = Random(f"{self._seed}/{self.connections}")
                thread = threading.Thread(target=self._connect, args=(near, fate), name="proxied")
                self._threads.append(thread)
                thread.start()

    def _connect(self, near: socket.socket, fate: Random) -> None:
        with suppress(OSError), near, socket.create_connection(("127.0.0.1", self._to)) as far:
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._carry(near, far, fate):
                self._end(near, far, fate)

    def _carry(self, near: socket.socket, far: socket.socket, fate: Random) -> bool:
        """True when the connection has carried what it may; False when an end has closed it."""
        left = _between(fate, self._weather.least, self._weather.most)
        while left and not self._closing.is_set():
            if ready := select.select((near, far), (), (), 0.1)[0]:
                source = fate.choice(ready)
                data = source.recv(min(left, _between(fate, 1, _LARGEST_PIECE)))
                if not data:
                    return False
                (far if source is near else near).sendall(data)
                left -= len(data)
                with self._lock:
                    self.up_bytes += len(data) if source is near else 0
                    self.down_bytes += len(data) if source is far else 0
                if fate.random() < self._weather.stalls:
                    self._closing.wait(fate.uniform(0, 0.3))
        return not left

    def _end(self, near: socket.socket, far: socket.socket, fate: Random) -> None:
        kind = fate.choices(("closed", "reset", "silent"), (4, 4, 1))[0]
        with self._lock:
            self.ends[kind] += 1
        if kind == "silent":
            self._closing.wait(fate.uniform(0, self._weather.silence_s))
        if kind == "reset":
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _between(fate: Random, least: int, most: int) -> int:
    return int(math.exp(fate.uniform(math.log(least), math.log(most))))
