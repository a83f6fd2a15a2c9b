"""A network in one process that loses, delays, repeats, reorders and damages what is said, from a seed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.errors import FedpeftError, UnreachableError
from fedpeft.peers.answering import answer
from fedpeft.peers.exchange import Call
from fedpeft.peers.peer import Peer
from fedpeft.random import Purpose, Stream


@dataclass(frozen=True)
class Weather:
    """How bad a network is; each number is a probability, of a request and of an answer alike.

    Args:
        loss: it never comes.
        repeat: it comes again later, after others.
        damage: one bit of it is turned.
        delay: it comes later, after others, when nobody waits for it any more: a request is then carried out without
            an answer, and an answer is not read.
    """

    loss: float = 0.0
    repeat: float = 0.0
    damage: float = 0.0
    delay: float = 0.0


@dataclass
class Network:
    """What carries calls between peers; a call is answered at once, or not at all.

    A request may be carried out though its answer is lost, long after its caller gave up, or a second time when later
    ones have been: that is all that delay and reordering can do to a protocol of questions and answers.

    Args:
        peers: by number.
        seed: of all that goes wrong.
        weather: how much does.
    """

    peers: Mapping[int, Peer]
    seed: int = 0
    weather: Weather = Weather()
    sent: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._island: dict[int, int] = {}
        self._late: list[tuple[int, str, bytes]] = []
        self._draws: list[float] = []
        self._block = 0

    def split(self, islands: Sequence[Iterable[int]]) -> None:
        """Let only peers of one island reach each other; who is on none is alone."""
        self._island = {peer: -peer for peer in self.peers}
        self._island |= {peer: i for i, island in enumerate(islands) for peer in island}

    def heal(self) -> None:
        """Let all reach each other."""
        self._island = {}

    def call(self, caller: int, callee: int) -> Call:
        """What `fedpeft.peers.exchange.exchange` asks another peer through.

        The call raises UnreachableError where the network fails.
        """

        def ask(method: str, request: bytes) -> list[bytes]:
            replies = self._carry(caller, callee, method, request)
            if self._chance(self.weather.loss) or self._chance(self.weather.delay):
                raise UnreachableError(f"{method}: the answer of peer {callee} was lost, or came too late")
            size = sum(map(len, replies))
            self.sent[callee] += size
            self.received[caller] += size
            return [self._weathered(reply) for reply in replies]

        return ask

    def _carry(self, caller: int, callee: int, method: str, request: bytes) -> list[bytes]:
        self.sent[caller] += len(request)
        apart = self._island.get(caller) != self._island.get(callee)
        if apart or callee not in self.peers or self._chance(self.weather.loss):
            raise UnreachableError(f"{method}: peer {callee} was not reached")
        request = self._weathered(request)
        late = self._chance(self.weather.delay)
        if late or self._chance(self.weather.repeat):
            self._late.append((callee, method, request))
        if self._late and self._chance(0.5):
            self._deliver()
        if late:
            raise UnreachableError(f"{method}: peer {callee} did not answer in time")
        self.received[callee] += len(request)
        return list(answer(self.peers[callee], method, request))

    def _deliver(self) -> None:
        """Carry out a request of earlier that was delayed or is repeated; nobody hears the answer."""
        callee, method, request = self._late.pop(int(self._draw() * len(self._late)))
        if callee in self.peers:
            try:
                list(answer(self.peers[callee], method, request))
            except FedpeftError:
                return

    def _weathered(self, data: bytes) -> bytes:
        if not data or not self._chance(self.weather.damage):
            return data
        damaged = bytearray(data)
        bit = int(self._draw() * 8 * len(data))
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._draw() < probability

    def _draw(self) -> float:
        if not self._draws:
            self._draws = Stream(self.seed, Purpose.NETWORK, self._block).uniform(1024).tolist()
            self._block += 1
        return self._draws.pop()
