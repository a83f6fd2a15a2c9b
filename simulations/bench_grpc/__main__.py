"""What the gRPC runtime carries over loopback, beside a raw copy of the same bytes and beside Flower.

`python -m simulations.bench_grpc`: one server process and 1, 8 and 32 site processes, each with its own connection
(mutual TLS), send 1, 33 and 330 MB each. `--quick` takes 1 and 4 sites, 1 and 8 MB, and leaves Flower out.
"""

import argparse
from typing import Any

from simulations import table
from simulations.bench_grpc import flower, ours

COLUMNS = ("transport", "sites", "payload_mb", "goodput_mb_s", "raw_mb_s", "ratio_to_raw", "overhead_ms",
           "server_peak_mb", "server_idle_mb", "server_own_mb", "server_cpu_s_per_gb", "site_cpu_s_per_gb",
           "moving_mb_s", "rounds", "others_cores")  # fmt: skip
FLOWER = ((1, (33, 330), False), (1, (33, 330), True), (8, (1, 33), False), (8, (1, 33), True))
NOTES = """
MB is 10^6 bytes, GB 10^9; every figure is for all sites together, all processes on this machine.
goodput: payload bytes over the wall time from the call of `exchange` to the last reply handed over (Flower: from the
  push of the small task to the last reply pulled); median of the rounds. A site has its bytes ready before the round;
  hashing them, TLS, the spool on disk, the check at the server and what the consumer does between two replies (CRC-32
  of every byte, then the reply is dropped) are part of it.
raw: the same bytes by plain TCP from the same site processes over as many connections into one process that reads them
  into a buffer of a megabyte for each connection and does nothing with them; median of as many rounds.
overhead: median time of a round in which every site answers 1 kB, 30 rounds (Flower: 5).
peak: high-water resident memory of the server during the transfer (VmHWM) less `idle`, which is what is resident when
  all sites are connected and nothing was sent yet, so what earlier rows left behind counts. Pages of the spool's file
  that the consumer reads count too; `own` is the largest anonymous part less what was resident before, sampled every
  20 ms. Flower: SuperLink and ServerApp, added.
cpu: user and system seconds for each GB of payload, server and sites apart; Flower's with all that it starts.
moving (Flower): payload bytes over the time from the first reply being ready at its node to the last one pulled, so
  without its polling and its new process for each message.
others: cores that processes outside the bench used meanwhile; where it is not near 0, the times are too long.
"""


def main() -> None:
    """Measure and print."""
    parser = table.arguments(__doc__ or "")
    parser.add_argument("--flower", action=argparse.BooleanOptionalAction, help="rows of Flower (not with --quick)")
    options = parser.parse_args()
    counts, sizes_mb = ((1, 4), (1, 8)) if options.quick else ((1, 8, 32), (1, 33, 330))
    rows = [row for sites in counts for row in ours.rows(sites, sizes_mb)]
    said = "Flower: left out"
    if options.flower or (options.flower is None and not options.quick):
        said = with_flower(rows)
    table.show("gRPC runtime, mutual TLS over loopback", rows, options, COLUMNS)
    table.save(rows, options)
    print(NOTES + said)


def with_flower(rows: list[dict[str, Any]]) -> str:
    """Add Flower's rows, with the raw figures of ours; what is said of them."""
    if not flower.installed():
        return "Flower: not installed (pip install 'fedpeft[flower]')"
    raw = {(row["sites"], row["payload_mb"]): row["raw_mb_s"] for row in rows}
    said = "Flower: in-memory SuperLink, one SuperNode process for each site, one uint8 Array in each reply"
    for sites, sizes_mb, tls in FLOWER:
        try:
            for row in flower.rows(sites, sizes_mb, tls):
                row["raw_mb_s"] = raw[sites, row["payload_mb"]]
                row["ratio_to_raw"] = row["goodput_mb_s"] / row["raw_mb_s"]
                rows.append(row)
        except RuntimeError as error:
            said += f"\nFlower, {sites} sites: {error}"
    return said


if __name__ == "__main__":
    main()
