"""A line that can be cut: in front of a peer's port, and, as an HTTP proxy, for all that the peer itself dials."""

import select
import socket
import threading
from contextlib import suppress
from typing import Self

_LONGEST_HEAD = 1 << 13


class Line:
    """Listens on a port of loopback and carries what comes to another, or to where a CONNECT says.

    It carries what it cannot read: mutual TLS goes through from end to end.

    Args:
        to: the port; None: a proxy.
    """

    def __init__(self, to: int | None) -> None:
        self._to, self._whole = to, True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.carried_bytes = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="line", daemon=True).start()

    def cut(self) -> None:
        """Break what is open, and let nothing through."""
        with self._lock:
            self._whole = False
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """Let everything through again."""
        with self._lock:
            self._whole = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), name="carried", daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near, suppress(OSError, ValueError):
            if not self._whole:
                return
            port = self._to if self._to is not None else _asked(near)
            with socket.create_connection(("127.0.0.1", port), 10) as far:
                if self._to is None:
                    near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                with self._lock:
                    if not self._whole:
                        return
                    self._open |= {near, far}
                try:
                    self._carry(near, far)
                finally:
                    with self._lock:
                        self._open -= {near, far}

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        while True:
            for end in select.select((near, far), (), ())[0]:
                data = end.recv(1 << 16)
                if not data:
                    return
                (far if end is near else near).sendall(data)
                self.carried_bytes += len(data)


def _asked(near: socket.socket) -> int:
    """The port that a CONNECT names."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _LONGEST_HEAD:
        piece = near.recv(1)
        if not piece:
            break
        head += piece
    method, place, *_ = head.decode("ascii").split()
    if method != "CONNECT":
        raise ValueError(f"expected CONNECT, got {method}")
    return int(place.rpartition(":")[2])
