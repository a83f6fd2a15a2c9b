"""Mutual TLS: the server trusts the very certificates on the roster, a site trusts the authority."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import grpc

from fedpeft import keys
from fedpeft.errors import IdentityError
from fedpeft.runtime import door


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """Credentials of the coordinator's folder; they follow the roster and a renewed server.crt without a restart.

    They are for one port: gRPC is told of a change once.

    Raises:
        IdentityError: the server's key or certificate cannot be used.
    """
    roster = keys.Roster(folder)
    return door.server_credentials(
        lambda: keys.pair(folder, "server"),
        lambda: b"".join(member.certificate for member in roster.members().values()),
    )


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
