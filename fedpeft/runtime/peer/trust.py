"""Mutual TLS among peers: whoever has a certificate on the roster comes in, and is that member."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import grpc

from fedpeft.errors import IdentityError
from fedpeft.keys.peer import usable
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Member, Roster
from fedpeft.runtime.door import server_credentials


class Trust:
    """Who is at the other end: the members of the open epoch's roster and of the newest one, which follows it.

    A member that the newest roster dismisses may still be needed to close the open epoch, and one that it admits must
    fetch that epoch's end; each keeps both its certificates while they differ.

    Args:
        peer: whose rosters count.
        public: key of this peer, which is nobody that it dials.
        pair: private key and certificate of this peer's TLS, PEM.
    """

    def __init__(self, peer: Peer, public: bytes, pair: tuple[bytes, bytes]) -> None:
        self._peer, self._public, self.pair = peer, public, pair
        with peer.lock:
            self._seen = _Seen.of((peer.roster, peer.newest_roster))

    @property
    def own(self) -> int:
        """This peer's number, as the newest roster that has it says; 0 where none does."""
        return next((number for number, held in self._now().held.items() if held[-1].key == self._public), 0)

    def others(self) -> dict[int, Member]:
        """Everybody but this peer, by number, as the newest roster that has them says."""
        return {number: held[-1] for number, held in self._now().held.items() if held[-1].key != self._public}

    def certificates(self, number: int) -> bytes:
        """What a member may show, PEM; nothing where nobody is known by that number."""
        return b"".join(dict.fromkeys(_pem(member.certificate) for member in self._now().held.get(number, ())))

    def anchors(self) -> bytes:
        """What anybody who comes in may show, PEM."""
        return b"".join(map(_pem, self._now().numbers))

    def caller(self, context: grpc.ServicerContext) -> int:
        """The number of the member at the other end of a call.

        Raises:
            IdentityError: the connection shows no certificate, or one that is on no roster any more.
        """
        shown = cast("Mapping[str, Sequence[bytes]]", context.auth_context()).get("x509_pem_cert")
        if not shown:
            raise IdentityError("the connection shows no certificate; peers connect over mutual TLS")
        number = self._now().numbers.get(ssl.PEM_cert_to_DER_cert(shown[0].decode("ascii")))
        if number is None:
            raise IdentityError("the certificate is not on the roster here; ask the organiser for the newest roster")
        return number

    def credentials(self) -> grpc.ServerCredentials:
        """Of a server on one port, which follow the rosters; gRPC is told of a change once."""
        return server_credentials(lambda: self.pair, self.anchors)

    def _now(self) -> "_Seen":
        """What the rosters say; what they said last while the peer is at work, for no handshake waits for that."""
        if self._peer.lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._peer.lock.release()
        return self._seen

    def _look(self) -> None:
        rosters = (self._peer.roster, self._peer.newest_roster)
        if self._seen.rosters != tuple(roster.hash for roster in rosters):
            self._seen = _Seen.of(rosters)


@dataclass(frozen=True)
class _Seen:
    """Two rosters at once: each member as they have it, and whose a certificate (DER) is."""

    rosters: tuple[bytes, ...]
    held: Mapping[int, Sequence[Member]]
    numbers: Mapping[bytes, int]

    @classmethod
    def of(cls, rosters: Sequence[Roster]) -> "_Seen":
        held: dict[int, list[Member]] = {}
        for roster in rosters:
            for member in roster.members:
                held.setdefault(member.number, []).append(member)
        numbers = {member.certificate: number for number, members in held.items() for member in members}
        return cls(tuple(roster.hash for roster in rosters), held, numbers)


@lru_cache(maxsize=8192)
def _pem(certificate: bytes) -> bytes:
    """A certificate as text; nothing, of bytes that are none."""
    return ssl.DER_cert_to_PEM_cert(certificate).encode() if usable(certificate) else b""
