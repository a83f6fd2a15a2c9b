"""What the server carries from round to round, as one blob."""

import json
from dataclasses import dataclass, field

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

_OPTIMIZER = "optimizer."


@dataclass(frozen=True, eq=False)
class ServerState:
    """The server after a round.

    Args:
        run: 16 random bytes that name the run.
        round: the last committed round; 0 before the first.
        vector: the global adapter, shape (d,), float32.
        public: the adapter that the sites held in that round (`fedpeft.federation.broadcast`), shape (d,).
        optimizer: state of the server optimizer.
        counted: the last round in which each node's update was counted, and whose public adapter it therefore holds.
        refused: the last round in which each node's update was refused for what was in it.
    """

    run: bytes
    round: int
    vector: Float[Tensor, " d"]
    public: Float[Tensor, " d"]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A safetensors file; the same state gives the same bytes."""
        facts = {"run": self.run.hex(), "round": self.round, "counted": self.counted, "refused": self.refused}
        text = json.dumps(facts, sort_keys=True).encode()
        tensors = {"facts": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        tensors |= {"vector": self.vector, "public": self.public}
        tensors |= {_OPTIMIZER + name: tensor for name, tensor in self.optimizer.items()}
        return safetensors.torch.save(tensors)

    @staticmethod
    def from_bytes(data: bytes) -> "ServerState":
        """The state that `to_bytes` wrote."""
        tensors = safetensors.torch.load(data)
        facts = json.loads(tensors.pop("facts").numpy().tobytes())
        return ServerState(
            run=bytes.fromhex(facts["run"]),
            round=facts["round"],
            vector=tensors.pop("vector"),
            public=tensors.pop("public"),
            optimizer={name.removeprefix(_OPTIMIZER): tensor for name, tensor in tensors.items()},
            counted=facts["counted"],
            refused=facts["refused"],
        )
