"""What peers without a server cost, in scalars of one byte each, 256 in a signed segment.

`python -m simulations.bench_peers`: bytes of a scalar over gRPC with mutual TLS on loopback, framing, signatures and
answers included; what a newcomer needs after 1, 10 and 100 closed epochs of 4 members; rounds of exchange in random
pairs until 8, 64 and 256 simulated peers hold the same; and 10,000 scalars at 1,048,576 parameters replayed. `--quick`
takes 1 and 10 epochs, 8 and 32 peers.
"""

from typing import Any

import torch

from fedpeft import kernels
from simulations import table
from simulations.bench_peers import loopback, scalars, swarms

COLUMNS = ("what", "peers", "history", "bytes_per_scalar", "join_bytes", "join_s", "rounds_to_agree", "replay_s",
           "one_by_one_s", "times_faster", "bytes_per_scalar_and_peer")  # fmt: skip
NOTES = """
bytes_per_scalar: of TCP, both ways, with TLS, HTTP/2, gRPC and protobuf, for one peer to give another.
history: closed epochs, each of 4 segments of every member. join: from an empty folder to the adapter, from one other
  member, over a network in this process: without what gRPC and TLS add.
bytes_per_scalar_and_peer: all that the members sent in those epochs, votes and comparisons included, over scalars and
  receivers.
one_by_one: a normal vector drawn from a seed for each scalar, as MeZO replays; 20 of them, and the rest reckoned.
"""
NUMEL = 1 << 20


def main() -> None:
    """Measure and print."""
    options = table.arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    kernels.warm_up()
    ledger, blank = scalars.ledger(NUMEL), dict.fromkeys(COLUMNS)
    rows: list[dict[str, Any]] = []
    for way, count in loopback.bytes_per_scalar(ledger, 16 if options.quick else 128).items():
        rows.append(blank | {"what": way, "peers": 2, "bytes_per_scalar": count})
    for history in (1, 10) if options.quick else (1, 10, 100):
        found = swarms.join(ledger, 4, history, options.seed)
        rows.append(blank | {"what": "join", "peers": 4, "history": history} | found)
    for peers in (8, 32) if options.quick else (8, 64, 256):
        rounds = swarms.rounds_to_agree(ledger, peers, options.seed)
        rows.append(blank | {"what": "agree", "peers": peers, "rounds_to_agree": rounds})
    replay = scalars.replay_s(NUMEL, 10_000, 20)
    faster = {"times_faster": replay["one_by_one_s"] / replay["replay_s"]}
    rows.append(blank | {"what": "replay 10,000"} | replay | faster)
    table.show("peers without a server", rows, options, COLUMNS)
    table.save(rows, options)
    print(NOTES)


if __name__ == "__main__":
    main()
