"""A site that stays while its callers come and go: tasks are handed in over a Unix domain socket."""

import os
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError, Reason, RefusedError, RunError

if TYPE_CHECKING:  # a caller is a short-lived process, which need not import what trains
    from fedpeft.federation import Handler

LARGEST = 1 << 31
_LENGTH = struct.Struct("!Q")
_LONGEST_PATH = 100
_CALLERS = 16
_PIECE = 1 << 20


def serve(
    path: Path, handler: "Handler", stop: threading.Event, largest: int = LARGEST, silent_s: float = 30.0
) -> None:
    """Answer callers, one at a time while the others wait, until `stop` is set; a task at work is finished first.

    The socket has mode 0600, in a folder of mode 0700 that is made if it does not exist.

    Args:
        path: of the socket.
        handler: makes a reply of a task; what it raises ends the serving.
        stop: set to end; by a signal handler, say.
        largest: bytes of a task.
        silent_s: seconds after which a caller that neither sends nor reads is given up.

    Raises:
        ConfigError: the path cannot be used, or another process serves there.
    """
    listener, desk = _listen(path), _Desk(handler, stop, largest, silent_s)
    callers: list[threading.Thread] = []
    with listener:
        while not stop.is_set():
            with suppress(TimeoutError):
                caller, _ = listener.accept()
                callers = [thread for thread in callers if thread.is_alive()]
                callers.append(threading.Thread(target=desk.attend, args=(caller,), name="caller", daemon=True))
                callers[-1].start()
    path.unlink(missing_ok=True)
    for thread in callers:
        thread.join()
    if desk.failures:
        raise desk.failures[0]


def ask(path: Path, request: bytes, timeout_s: float, largest: int = LARGEST) -> bytes:
    """Hand a task to the site that serves at a path; a site that is away or dies on the way is asked again.

    Args:
        path: of the socket.
        request: the bytes of the task; handed in twice, it must be as good as once.
        timeout_s: seconds in all.
        largest: bytes of a task or a reply.

    Raises:
        ValueError: the task is too large.
        RefusedError: the reply is.
        RunError: nobody answered in time.
    """
    if len(request) > largest:
        raise ValueError(f"request: expected at most {largest} bytes, got {len(request)}")
    until, pause = time.monotonic() + timeout_s, 0.1
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as site:
                site.settimeout(max(0.01, until - time.monotonic()))
                site.connect(str(path))
                _send(site, request)
                site.settimeout(max(0.01, until - time.monotonic()))
                return _receive(site, largest)
        except OSError as error:
            if time.monotonic() + pause >= until:
                raise RunError(
                    f"{path}: no site answered within {timeout_s:g} s ({error.strerror or error}); start it with "
                    f"`fedpeft site --config site.yaml --socket {path}`"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


class _Desk:
    """Where callers are attended to: a few at a time, and only one is worked for."""

    def __init__(self, handler: "Handler", stop: threading.Event, largest: int, silent_s: float) -> None:
        self._handler, self._stop, self._largest, self._silent_s = handler, stop, largest, silent_s
        self._turn, self._places = threading.Lock(), threading.BoundedSemaphore(_CALLERS)
        self.failures: list[BaseException] = []

    def attend(self, caller: socket.socket) -> None:
        # A caller that is dead, silent or no caller of ours is nobody else's trouble.
        with self._places, caller, suppress(OSError, RefusedError):
            caller.settimeout(self._silent_s)
            reply = self._work(_receive(caller, self._largest), caller)
            if reply is not None:
                _send(caller, reply)

    def _work(self, request: bytes, caller: socket.socket) -> bytes | None:
        with self._turn:
            if self._stop.is_set() or _gone(caller):
                return None
            try:
                return self._handler(request)
            except BaseException as error:
                self.failures.append(error)
                self._stop.set()
                return None


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(f"{path}: the path of a socket has at most {_LONGEST_PATH} bytes; take a shorter one")
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise ConfigError(f"{folder}: expected a folder that only its owner, this user, can enter: chmod 700 it")
        _clear(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.settimeout(0.2)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be listened on: {error.strerror}") from None
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that a killed process left."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path}: expected a socket or nothing, found something else")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"{path}: another process serves there")


def _gone(caller: socket.socket) -> bool:
    """Whether a caller has hung up while it waited its turn."""
    timeout = caller.gettimeout()
    caller.setblocking(False)
    try:
        return not caller.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        caller.settimeout(timeout)


def _send(peer: socket.socket, data: bytes) -> None:
    peer.sendall(_LENGTH.pack(len(data)))
    view = memoryview(data)
    while view:
        view = view[peer.send(view[:_PIECE]) :]


def _receive(peer: socket.socket, largest: int) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size))
    if length > largest:
        raise RefusedError(Reason.BAD_PAYLOAD, f"expected at most {largest} bytes, got {length}")
    return _exactly(peer, length)


def _exactly(peer: socket.socket, length: int) -> bytes:
    pieces, missing = [], length
    while missing:
        piece = peer.recv(min(_PIECE, missing))
        if not piece:
            raise ConnectionResetError("it hung up")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
