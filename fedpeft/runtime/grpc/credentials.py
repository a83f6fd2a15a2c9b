"""Mutual TLS: the server trusts the very certificates on the roster, a site trusts the authority.

gRPC for Python has no revocation lists. So the anchors of a handshake at the server are not the authority but the
roster's own certificates: what the authority signed and the roster does not hold (any more) fails to verify. A roster
that changed makes a new configuration, under which a session ticket, which resumes without a certificate, is void.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import grpc

from fedpeft import keys
from fedpeft.errors import IdentityError

_log = logging.getLogger(__name__)

_PASSING_S = 0.2


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """Credentials of the coordinator's folder; they follow the roster and a renewed server.crt without a restart.

    They are for one port: gRPC is told of a change once.

    Raises:
        IdentityError: the server's key or certificate cannot be used.
    """
    door = _Door(folder)
    fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", door.change)  # None for "unchanged" is allowed
    return grpc.dynamic_ssl_server_credentials(fetch(), fetch, True)


def site_credentials(folder: Path) -> grpc.ChannelCredentials:
    """Credentials of a site's folder, as it is now; a channel made after a renewal uses the new certificate.

    Raises:
        IdentityError: the site's key or certificate cannot be used.
    """
    key, certificate = keys.pair(folder, "site")
    return grpc.ssl_channel_credentials(keys.trusted(folder), key, certificate)


def peer(context: grpc.ServicerContext, folder: Path) -> tuple[str, str]:
    """The site at the other end of a call, and its key's fingerprint, as the roster has them now.

    Raises:
        IdentityError: the connection has no certificate, or one that has expired or left the roster since.
    """
    shown = cast("Mapping[str, Sequence[bytes]]", context.auth_context()).get("x509_pem_cert")
    if not shown:
        raise IdentityError("the connection shows no certificate; sites connect over mutual TLS")
    member = keys.identify(folder, shown[0])
    return member.site, member.fingerprint


class _Door:
    """What the server shows and whom it trusts, asked anew for each handshake."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._roster = folder, keys.Roster(folder)
        self._pair, self._nobody = keys.pair(folder, "server"), keys.nobody()
        self._told: tuple[tuple[bytes, bytes], bytes] | None = None
        self._lock = threading.Lock()

    def change(self) -> grpc.ServerCertificateConfiguration | None:
        """What the folder says now, or None where gRPC has been told; if it cannot be read, nobody comes in.

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

    def _look(self) -> tuple[tuple[bytes, bytes], bytes]:
        try:
            self._pair = keys.pair(self._folder, "server")
        except Exception as error:
            _log.error("the server's certificate is not read again: %s", error)
        try:
            anchors = [member.certificate for member in self._roster.members().values()]
        except Exception as error:
            _log.error("nobody is let in: %s", error)
            anchors = []
        return self._pair, b"".join([self._nobody, *anchors])
