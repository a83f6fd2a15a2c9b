"""What a peer knows of the others: where they are, when they were heard, and whom to ask next."""

import random
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fedpeft.keys.peer import LONGEST_ADDRESS, check_address
from fedpeft.peers.roster import Member

_MOST_HINTS = 3  # of one member's addresses, the newest
_MOST_TOLD = 64
_AT_ONCE = 2  # places that are tried before others have their turn
_LONGEST_WAIT_S = 60.0


@dataclass
class Contact:
    """Another member, as it is met.

    Args:
        worked: the address where it was reached last; "" for none.
        hints: where others say that it is.
        failures: since all that both hold was compared last.
        next_try: when it is tried again after a failure.
        heard: when it last answered or called; None for never.
        agreed: how often all that both hold has been compared.
        sent_bytes: of messages to it, asked and answered; without what gRPC, TLS and TCP add.
        received_bytes: of messages from it.
        trouble: what it did wrong last.
    """

    worked: str = ""
    hints: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_HINTS))
    failures: int = 0
    next_try: float = 0.0
    heard: float | None = None
    agreed: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    trouble: str = ""


class Contacts:
    """A contact for each member that there is to do with; may be used from any thread.

    Args:
        fixed: addresses that this peer's owner knows, by member's name; tried before those on the roster.
        every_s: seconds between two exchanges; a member that is not reached is tried again after as many, and each
            time after up to twice as many.
    """

    def __init__(self, fixed: Mapping[str, Iterable[str]], every_s: float) -> None:
        self._fixed = {name: tuple(places) for name, places in fixed.items()}
        self._every_s = every_s
        self._lock = threading.Lock()
        self._known: dict[int, Contact] = {}

    def addresses(self, member: Member) -> list[str]:
        """Where to look for a member this time, the likeliest place first; other places after each failure."""
        contact = self._of(member.number)
        told = [contact.worked, *self._fixed.get(member.name, ()), *member.addresses, *reversed(contact.hints)]
        places = list(dict.fromkeys(filter(None, told)))
        first = contact.failures * _AT_ONCE % len(places) if len(places) > _AT_ONCE else 0
        return [*places[first:], *places[:first]][:_AT_ONCE]

    def choose(self, others: Mapping[int, Member], now: float) -> int | None:
        """Whom to compare with next, at random: members with whom that was never tried go first; None for nobody."""
        due = [n for n, member in others.items() if self._of(n).next_try <= now and self.addresses(member)]
        new = [n for n in due if not self._of(n).agreed and not self._of(n).failures]
        return random.choice(new or due) if due else None  # noqa: S311 - spreads the load, decides nothing

    def some(self, others: Mapping[int, Member], most: int) -> list[int]:
        """Members to push to, at random, among those with whom nothing failed last time."""
        near = [n for n, member in others.items() if not self._of(n).failures and self.addresses(member)]
        return random.sample(near, min(most, len(near)))

    def agreed(self, number: int) -> None:
        """All that a member holds has been compared with what is held here."""
        with self._lock:
            contact = self._of(number)
            contact.agreed += 1
            contact.failures, contact.next_try, contact.trouble = 0, 0.0, ""

    def reached(self, number: int, now: float, address: str = "") -> None:
        """A member answered, at an address; whether it is of any use shows when an exchange comes to its end."""
        with self._lock:
            contact = self._of(number)
            contact.heard = now
            contact.worked = address or contact.worked

    def called(self, number: int, now: float) -> None:
        """A member called; that it can be reached, too, is likelier than it was."""
        with self._lock:
            contact = self._of(number)
            contact.heard, contact.next_try = now, min(contact.next_try, now + self._every_s)

    def missed(self, number: int, now: float, why: str) -> None:
        """A member was not reached, or what it said is of no use; leave it alone for a while."""
        with self._lock:
            contact = self._of(number)
            contact.failures, contact.trouble = contact.failures + 1, why
            longest = min(_LONGEST_WAIT_S, self._every_s * 2.0 ** min(contact.failures, 30))
            contact.next_try = now + random.uniform(longest / 2, longest)  # noqa: S311 - as in `choose`

    def carried(self, number: int, sent: int, received: int) -> None:
        """So many bytes went to a member and came from it."""
        with self._lock:
            contact = self._of(number)
            contact.sent_bytes += sent
            contact.received_bytes += received

    def hint(self, number: int, address: str) -> None:
        """Somebody says where a member is; it is tried after all else, and only its own certificate is let through."""
        try:
            check_address(address[: LONGEST_ADDRESS + 1])
        except ValueError:
            return
        with self._lock:
            hints = self._of(number).hints
            if address not in hints:
                hints.append(address)

    def told(self, members: Collection[int]) -> dict[int, str]:
        """Where some of the members were reached from here, to tell others."""
        with self._lock:
            places = {n: contact.worked for n, contact in self._known.items() if contact.worked and n in members}
        return dict(random.sample(sorted(places.items()), min(_MOST_TOLD, len(places))))

    def seen(self, number: int) -> Contact:
        """A contact to look at."""
        with self._lock:
            return self._of(number)

    def _of(self, number: int) -> Contact:
        return self._known.setdefault(number, Contact())
