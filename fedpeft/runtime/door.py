"""Credentials of a gRPC server that trusts the very certificates it is told of, and follows them without a restart.

gRPC for Python has no revocation lists. So the anchors of a handshake are no authority but whoever may come in: any
other certificate fails to verify. What changed makes a new configuration, under which a session ticket, which resumes
without a certificate, is void.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeAlias, cast

import grpc

from fedpeft.keys import nobody

_log = logging.getLogger(__name__)

_PASSING_S = 0.2

Pair: TypeAlias = tuple[bytes, bytes]


def server_credentials(pair: Callable[[], Pair], anchors: Callable[[], bytes]) -> grpc.ServerCredentials:
    """Credentials for one port: gRPC is told of a change once.

    Args:
        pair: the private key and certificate to show, PEM; what it gave last holds on where it raises later.
        anchors: the certificates that may come in, PEM; nobody comes in where it raises.
    """
    door = _Door(pair, anchors)
    fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", door.change)  # None for "unchanged" is allowed
    return grpc.dynamic_ssl_server_credentials(fetch(), fetch, True)


class _Door:
    """What is shown and who is trusted, asked anew for each handshake."""

    def __init__(self, pair: Callable[[], Pair], anchors: Callable[[], bytes]) -> None:
        self._pair, self._anchors = pair, anchors
        self._shown, self._nobody = pair(), nobody()
        self._told: tuple[Pair, bytes] | None = None
        self._lock = threading.Lock()

    def change(self) -> grpc.ServerCertificateConfiguration | None:
        """What holds now, or None where gRPC has been told.

        It never raises and always has an anchor: otherwise gRPC would go on with the configuration before.
        """
        with self._lock:
            now = self._look()
            if now == self._told:
                return None
            if self._told is not None:
                # gRPC frees the configuration before, even under a handshake that has just asked (grpc/grpc#36693).
                time.sleep(_PASSING_S)
            self._told = now
            return grpc.ssl_server_certificate_configuration([now[0]], now[1])

    def _look(self) -> tuple[Pair, bytes]:
        try:
            self._shown = self._pair()
        except Exception as error:
            _log.error("the certificate that is shown is not read again: %s", error)
        try:
            anchors = self._anchors()
        except Exception as error:
            _log.error("nobody is let in: %s", error)
            anchors = b""
        return self._shown, self._nobody + anchors
