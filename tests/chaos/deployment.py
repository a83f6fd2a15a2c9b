"""A server and its sites as real processes on loopback: keys, folders, commands, and a line between them."""

import random
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import yaml

from fedpeft import keys
from tests import tiny
from tests.chaos.program import SECONDS, Program
from tests.chaos.proxy import Proxy, Weather

_ADAPTER = ("adapter_model.safetensors", "adapter_config.json")


class Deployment:
    """Everything that a deployment of an experiment needs, nothing of it begun; use it as a context manager.

    Args:
        folder: for all its files.
        weather: of the line between the sites and the server; None: they are connected directly.
        seed: of the line.
        changes: to the tiny experiment.
    """

    def __init__(self, folder: Path, weather: Weather | None = None, seed: int = 0, **changes: Any) -> None:
        raw: dict[str, Any] = dict(tiny.experiment(folder, **changes))
        (folder / "tiny.yaml").write_text(yaml.safe_dump(raw))
        port = _free_port()
        self.folder, self.run, self._raw = folder, folder / "runs" / "tiny", raw
        self.proxy = Proxy(port, seed, weather) if weather else None
        keys.init(folder / "keys", ["localhost"])
        self.server = Program(
            folder / "server.log", "server", folder / "tiny.yaml", "--listen", f"127.0.0.1:{port}", "--metrics", "",
            "--keys", folder / "keys", "--runs", folder / "runs", "--keepalive-s", 2,
        )  # fmt: skip
        dialled = self.proxy.port if self.proxy else port
        self.sites = {f"site-{i}": self._site(f"site-{i}", i, dialled) for i in range(1, raw["sites"] + 1)}
        self._simulated = Program(
            folder / "simulated.log", "simulate", folder / "tiny.yaml", "--runs", folder / "simulated"
        )

    def _site(self, name: str, number: int, port: int) -> Program:
        own, raw = self.folder / name, self._raw
        keys.sign(self.folder / "keys", keys.request(own / "keys", name))
        keys.install(own / "keys", self.folder / "keys" / "roster" / f"{name}.crt", self.folder / "keys" / "ca.crt")
        described = {
            "server": f"localhost:{port}",
            "keys": str(own / "keys"),
            "folder": str(own / "state"),
            "model": raw["model"],
            "peft": raw["peft"],
            "data": {"source": f"Share({raw['data']['source']}, IID(), {number}, {raw['sites']})"},
            "first_wait_s": 0.1,
            "longest_wait_s": 1.0,
            "keepalive_s": 2.0,
        }
        (own / "site.yaml").write_text(yaml.safe_dump(described))
        return Program(self.folder / f"{name}.log", "site", "--config", own / "site.yaml")

    def start(self, fresh: Collection[str] = ()) -> None:
        """Begin the server, the sites, and a simulation of the same experiment.

        Args:
            fresh: whose interpreter shall be its own (`Program.start`).
        """
        for name, program in {"server": self.server, **self.sites, "": self._simulated}.items():
            program.start(fresh=name in fresh)

    def until(self, true: Callable[[], object], seconds: float = SECONDS) -> None:
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"it does not happen\n{self.printed()}"
            time.sleep(0.002)

    def stop_sites(self) -> None:
        """Ask all sites to end; they do, and well."""
        for site in self.sites.values():
            site.terminate()
        for name, site in self.sites.items():
            assert site.wait() == 0, f"{name}:\n{site.printed}"

    def equals_simulation(self) -> bool:
        """Whether the adapter has the very bytes of the simulated one."""
        assert self._simulated.wait() == 0, self._simulated.printed
        theirs = self.folder / "simulated" / "tiny"
        return all(
            (self.run / "adapter" / name).read_bytes() == (theirs / "adapter" / name).read_bytes() for name in _ADAPTER
        )

    def printed(self) -> str:
        """The last lines of every process."""
        programs = {"server": self.server} | self.sites
        return "\n".join(f"--- {name}\n{program.printed[-3000:]}" for name, program in programs.items())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for program in (self.server, *self.sites.values(), self._simulated):
            if not program.ended:
                program.kill()
        if self.proxy:
            self.proxy.close()


def _free_port() -> int:
    """One that no outgoing connection is given while the server is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
