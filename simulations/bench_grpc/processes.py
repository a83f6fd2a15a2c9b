"""The processes of the bench: one server, one for each site, and one that takes raw copies of the same bytes."""

import json
import os
import socket
import threading
import time
import zlib
from multiprocessing.connection import Connection
from pathlib import Path

from fedpeft._proto import session_pb2 as pb
from fedpeft.cli import surroundings
from fedpeft.federation import NodeId, Parcel
from fedpeft.runtime.grpc.server import GrpcTransport
from fedpeft.runtime.grpc.site import Dialling, Site

PATTERN = 1 << 20
DEADLINE_S = 600.0


def payload(size: int) -> bytes:
    """Bytes that no two processes have alike: a random megabyte again and again."""
    return (os.urandom(min(size, PATTERN)) * (size // PATTERN + 1))[:size]


def site(name: str, folder: Path, address: str, raw_port: int) -> None:
    """A site that has nothing to train: it prepares bytes when told to, and sends them when asked, either way."""
    surroundings.keep_memory_together()
    kept = b""

    def handler(task: bytes) -> bytes:
        nonlocal kept
        asked = json.loads(task)
        if asked["prepare"]:
            kept = b""
            kept = payload(asked["size"])
            return kept[:8]
        return kept

    def copy() -> None:
        with socket.create_connection(("127.0.0.1", raw_port)) as connection:
            while connection.recv(1):
                connection.sendall(kept)

    threading.Thread(target=copy, daemon=True).start()
    dialling = Dialling(address, folder / name, first_wait_s=0.1)
    Site(dialling, handler, pb.Hello(), folder / f"{name}-spool", stay=False).run()


def server(pipe: Connection, folder: Path, sites: int) -> None:
    """The round loop's place: holds the exchanges that come through the pipe, and tells their wall times."""
    surroundings.keep_memory_together()
    with GrpcTransport("127.0.0.1:0", folder / "server", folder / "spool", least=sites) as transport:
        pipe.send(transport.address)
        nodes = transport.nodes()
        pipe.send(len(nodes))
        beginnings: dict[NodeId, bytes] = {}
        for serial, (size, prepare) in enumerate(iter(pipe.recv, None)):
            task = json.dumps({"serial": serial, "size": size, "prepare": prepare}).encode()
            requests, missing = dict.fromkeys(nodes, Parcel.of(task)), set(nodes)
            began = ended = time.perf_counter()
            for arrival in transport.exchange(requests, DEADLINE_S):
                ended = time.perf_counter()
                missing.remove(arrival.node)
                if prepare:
                    beginnings[arrival.node] = bytes(arrival.data)
                else:
                    consume(arrival.data, size, beginnings[arrival.node])
                del arrival
            assert not missing, f"no answer from {sorted(missing)}"
            pipe.send(ended - began)
        transport.farewell(nodes, "the bench is over", 10)


def consume(data: bytes | memoryview, size: int, beginning: bytes) -> None:
    """Touch every byte of a reply (CRC-32), and check what the transport's digest does not say: whose it is."""
    zlib.crc32(data)
    assert len(data) == size
    assert bytes(data[:8]) == beginning
    assert data[-1] == data[(size - 1) % PATTERN]


def raw(pipe: Connection, sites: int) -> None:
    """Takes plain TCP copies, one thread for each connection, and does nothing with them."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=sites)
    pipe.send(listener.getsockname()[1])
    connections = [listener.accept()[0] for _ in range(sites)]
    pipe.send(sites)

    def take(connection: socket.socket, size: int) -> None:
        piece, left = bytearray(PATTERN), size
        connection.sendall(b"!")
        while left:
            left -= connection.recv_into(piece, min(left, PATTERN))

    for size in iter(pipe.recv, None):
        threads = [threading.Thread(target=take, args=(connection, size)) for connection in connections]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send(time.perf_counter() - began)
