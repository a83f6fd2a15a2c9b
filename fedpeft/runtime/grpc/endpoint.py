"""What both ends of a gRPC connection agree on."""

from typing import Any

PROTOCOL = 1
SERVICE, METHOD = "fedpeft.v1.Federation", "Session"
PATH = f"/{SERVICE}/{METHOD}"


def options(keepalive_s: float) -> list[tuple[str, Any]]:
    """Channel arguments of both ends: pings find a dead peer, and a frame is never larger than a piece.

    Args:
        keepalive_s: seconds of silence after which an end asks whether the other is alive.
    """
    every_ms = int(keepalive_s * 1000)
    return [
        ("grpc.max_receive_message_length", 2 << 20),
        ("grpc.max_send_message_length", 2 << 20),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.keepalive_time_ms", every_ms),
        ("grpc.keepalive_timeout_ms", every_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that takes pings for abuse would close every idle session ("too many pings").
        ("grpc.http2.min_recv_ping_interval_without_data_ms", every_ms // 2),
        ("grpc.http2.min_time_between_pings_ms", every_ms),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 60_000),  # a connection whose certificate is good, and that asks for nothing
        ("grpc.so_reuseport", 0),
        ("grpc.enable_retries", 0),
        ("grpc.lookahead_bytes", 1 << 20),
        # What a connection keeps allocated to read into: else as much as it ever read at once, over a megabyte.
        ("grpc.experimental.tcp_max_read_buffer_size", 1 << 16),
    ]
