"""What a client must not lose between rounds, and the file that holds it."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.durable import read_sealed, write_sealed
from fedpeft.space import Space


@dataclass(frozen=True, eq=False)
class ClientState:
    """What a client remembers between rounds, and must not lose.

    Args:
        run: the run it belongs to, b"" before the first task.
        held: the round whose public adapter `adapter` is; 0: none.
        adapter: the public adapter, shape (d,).
        residual: what error feedback carries over, shape (d,).
        before: the public adapter of the round before `held`, where the last reply's codec read it.
        replied: the last round replied to; 0: none.
        codec: the expression that the last reply was encoded with.
        reply: that reply, given again when the same round is asked again.
    """

    run: bytes
    held: int
    adapter: Float[Tensor, " d"]
    residual: Float[Tensor, " d"]
    replied: int = 0
    codec: str = ""
    reply: bytes = b""
    before: Float[Tensor, " d"] | None = None


class ClientStore:
    """A client's state as one file, replaced whole; in memory where there is no path.

    Args:
        path: the file.
        space: of the adapter.
    """

    def __init__(self, path: Path | None, space: Space) -> None:
        self._path, self._space = path, space
        self._state: ClientState | None = None

    def load(self) -> ClientState:
        """The state as it was last saved, or an empty one.

        Raises:
            JournalError: the file is damaged.
        """
        if self._path is None or not self._path.exists():
            return self._state or self.empty(b"")
        raw = safetensors.torch.load(read_sealed(self._path))
        held, replied = raw["rounds"].tolist()
        texts = {name: raw[name].numpy().tobytes() for name in ("run", "codec", "reply")}
        codec = texts.pop("codec").decode()
        return ClientState(
            held=held,
            replied=replied,
            adapter=raw["adapter"],
            residual=raw.get("residual", torch.zeros_like(raw["adapter"])),
            codec=codec,
            before=raw.get("before"),
            **texts,
        )

    def empty(self, run: bytes) -> ClientState:
        """What a client knows at the beginning of a run."""
        zeros = torch.zeros(self._space.numel, dtype=torch.float32, device="cpu")
        return ClientState(run, 0, zeros, zeros.clone())

    def save(self, state: ClientState) -> None:
        """Make a state the one that `load` gives."""
        if self._path is None:
            self._state = state
            return
        raw = {
            "rounds": torch.tensor([state.held, state.replied]),
            "adapter": state.adapter,
        }
        if state.residual.any():
            raw["residual"] = state.residual
        if state.before is not None:
            raw["before"] = state.before
        for name in ("run", "reply"):
            raw[name] = _bytes_tensor(getattr(state, name))
        raw["codec"] = _bytes_tensor(state.codec.encode())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(self._path, safetensors.torch.save(raw))


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
