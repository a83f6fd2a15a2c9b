"""What the gRPC runtime carries over loopback and what that costs, beside raw copies and Flower's own way."""

from typing import Any

from rich.console import Console

from simulations import table
from simulations.bench_grpc import flower, ours

COLUMNS = (
    "transport", "sites", "payload_mb", "goodput_mb_s", "raw_mb_s", "ratio_to_raw", "overhead_ms", "server_peak_mb",
    "server_idle_mb", "server_cpu_s_per_gb", "site_cpu_s_per_gb", "rounds",
)  # fmt: skip
NOTES = """MB is 10^6 bytes; all processes are on this machine, over mutual TLS.
goodput: all payload bytes / time from the exchange's call to the last reply at the consumer, which takes a CRC of it.
raw: the same bytes over as many plain TCP connections between the same processes, median of as many rounds.
overhead: median of 30 exchanges with a reply of 1 kB from each site.
server peak: high-water RSS during the transfer less the RSS with all sites connected and idle."""


def main() -> None:
    """Measure and print."""
    parser = table.arguments(__doc__ or "")
    parser.add_argument("--no-flower", action="store_true", help="leave Flower's own way out")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for sites in (1, 4) if options.quick else (1, 8, 32):
        rows += ours.rows(sites, (1, 8) if options.quick else (1, 33, 330))
    console = Console()
    if options.quick or options.no_flower:
        console.print("Flower is left out", style="dim")
    elif not flower.installed():
        console.print("Flower is not installed: pip install 'fedpeft[flower]'", style="dim")
    else:
        rows += flower.rows(1, (33, 330), tls=False)
        rows += flower.rows(8, (1, 33), tls=False)
    table.show("bench_grpc", rows, options, COLUMNS)
    console.print(NOTES, style="dim", markup=False)


if __name__ == "__main__":
    main()
