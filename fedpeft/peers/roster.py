"""Who takes part: members, and the list of them that the run's organiser signs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import IdentityError
from fedpeft.keys.signing import KEY_BYTES, SigningKey, digest, verified

MOST_MEMBERS = 4096
_LONGEST = {"name": 63, "certificate": 1 << 14}


@dataclass(frozen=True)
class Member:
    """Somebody who takes part.

    Args:
        number: on the roster, from 1; never given to another.
        name: for people.
        key: Ed25519 public key of what it signs, 32 bytes.
        certificate: of its TLS, DER; empty where peers talk without.
        addresses: "host:port" where it can be reached; none for a peer that only dials.
    """

    number: int
    name: str
    key: bytes
    certificate: bytes = b""
    addresses: tuple[str, ...] = ()

    def to_proto(self) -> pb.Member:
        """As a message."""
        return pb.Member(
            number=self.number,
            name=self.name,
            key=self.key,
            certificate=self.certificate,
            addresses=self.addresses,
        )


@dataclass(frozen=True)
class Roster:
    """The members of a run, under a serial that rises with every change.

    Args:
        run: that it is of, 32 bytes.
        serial: from 1.
        members: by number, rising.
        signature: of `hash`, by the run's organiser.

    Raises:
        ValueError: members are none, too many, not in order, or one of them is malformed or there twice.
    """

    run: bytes
    serial: int
    members: tuple[Member, ...]
    signature: bytes = b""

    def __post_init__(self) -> None:
        numbers = [member.number for member in self.members]
        if not 1 <= len(numbers) <= MOST_MEMBERS or numbers != sorted(set(numbers)) or numbers[0] < 1:
            raise ValueError(f"members: expected 1 to {MOST_MEMBERS} with rising numbers from 1, got {numbers[:8]}")
        if len({member.key for member in self.members}) < len(numbers):
            raise ValueError("members: two of them have one key; each peer makes its own")
        for member in self.members:
            if len(member.key) != KEY_BYTES:
                raise ValueError(f"{member.name!r}: expected a key of {KEY_BYTES} bytes, got {len(member.key)}")
            for field, longest in _LONGEST.items():
                if len(getattr(member, field)) > longest:
                    raise ValueError(f"{member.name!r}: its {field} is longer than {longest}")

    @cached_property
    def hash(self) -> bytes:
        """What the organiser signs."""
        texts = [member.to_proto().SerializeToString(deterministic=True) for member in self.members]
        return digest("roster", self.run, self.serial.to_bytes(4, "little"), *texts)

    @cached_property
    def by_number(self) -> dict[int, Member]:
        """Members under their numbers."""
        return {member.number: member for member in self.members}

    def signed(self, organiser: SigningKey) -> "Roster":
        """The same with the organiser's signature."""
        return replace(self, signature=organiser.sign(self.hash))

    def check(self, organiser: bytes) -> "Roster":
        """Itself, if the organiser signed it.

        Raises:
            IdentityError: it was signed by nobody, or by somebody else.
        """
        if not verified(organiser, self.hash, self.signature):
            raise IdentityError(f"roster {self.serial}: the signature is not the organiser's; ask for it again")
        return self

    def next(self, members: Iterable[Member]) -> "Roster":
        """The roster after this one, yet to be signed."""
        return Roster(self.run, self.serial + 1, tuple(sorted(members, key=lambda member: member.number)))

    def to_proto(self) -> pb.Roster:
        """As a message."""
        return pb.Roster(
            serial=self.serial, members=[member.to_proto() for member in self.members], signature=self.signature
        )

    @classmethod
    def from_proto(cls, message: pb.Roster, run: bytes) -> "Roster":
        """What came in a message.

        Raises:
            IdentityError: it is malformed.
        """
        try:
            members = (Member(m.number, m.name, m.key, m.certificate, tuple(m.addresses)) for m in message.members)
            return cls(run, message.serial, tuple(members), message.signature)
        except ValueError as error:
            raise IdentityError(f"roster {message.serial}: {error}") from None
