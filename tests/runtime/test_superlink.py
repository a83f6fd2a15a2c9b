"""A real SuperLink with three SuperNodes on loopback: TLS, node authentication, sites behind sockets (slow)."""

import datetime
import ipaddress
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.simulation import simulate, site_name
from tests import tiny
from tests.runtime.processes import BIN, Processes, free_port, wait_for

APP = Path(__file__).parents[2] / "examples" / "flower_app"
TOML = """
[superlink]
default = "deployed"

[superlink.deployed]
address = "127.0.0.1:{port}"
root-certificates = "{certificate}"
"""


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=link")
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "link.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    write_key(folder / "link.key", key, serialization.PrivateFormat.PKCS8)
    return folder / "link.crt", folder / "link.key"


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, kind: serialization.PrivateFormat) -> None:
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    path.chmod(0o600)


def write_node_key(path: Path) -> Path:
    """What a SuperNode wants: an OpenSSH key; its public half stands beside it."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_key(path, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="fl") as name:
        yield Path(name)


@pytest.fixture
def processes(folder: Path) -> Iterator[Processes]:
    started = Processes(folder)
    yield started
    started.end()


def write_app(folder: Path, experiment: dict[str, Any]) -> None:
    shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app" / "experiment.yaml").write_text(yaml.safe_dump(experiment))


def start_site(folder: Path, processes: Processes, experiment: dict[str, Any], index: int) -> None:
    """The resident process of a site that holds its share of the experiment's data."""
    described = {
        "server": "localhost:1",
        "folder": str(folder / f"site{index}"),
        "model": experiment["model"],
        "peft": experiment["peft"],
        "data": {"source": f"Share({experiment['data']['source']}, IID(), {index + 1}, 3)"},
    }
    path = folder / f"site{index}.yaml"
    path.write_text(yaml.safe_dump(described))
    processes.start(
        f"site{index}", BIN / "fedpeft", "site", "--config", path, "--socket", folder / f"s{index}" / "socket"
    )


def start_link(folder: Path, processes: Processes) -> Callable[..., str]:
    """A SuperLink; returns what runs a `flwr` command against it."""
    port, (certificate, key) = free_port(), write_certificate(folder)
    processes.start(
        "link", BIN / "flower-superlink", "--host", "127.0.0.1", "--port", port, "--ssl-ca-certfile", certificate,
        "--ssl-certfile", certificate, "--ssl-keyfile", key, "--enable-supernode-auth",
        "--disable-runtime-dependency-installation", "--database", folder / "state.db",
    )  # fmt: skip
    user = processes.environment("user")
    Path(user["FLWR_HOME"], "config.toml").write_text(TOML.format(port=port, certificate=certificate))

    def listens() -> bool:
        processes.log("link")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)

    def flwr(*arguments: str) -> str:
        command = [str(BIN / "flwr"), *arguments]
        done = subprocess.run(command, cwd=folder, env=user, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for i in range(3):
        public = write_node_key(folder / f"node{i}").with_suffix(".pub")
        # The last has no registered name, and is asked for its own.
        flwr("supernode", "register", str(public), "deployed", *(("--name", site_name(i, 3)) if i < 2 else ()))
    for i in range(3):
        config = f'site="{site_name(i, 3)}" socket="{folder / f"s{i}" / "socket"}"'
        processes.start(
            f"node{i}", BIN / "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates",
            certificate, "--auth-supernode-private-key", folder / f"node{i}", "--host", "127.0.0.1", "--port",
            free_port(), "--node-config", config,
        )  # fmt: skip
    return flwr


def status(flwr: Callable[..., str]) -> list[str]:
    runs = json.loads(flwr("list", "deployed", "--format", "json"))["runs"]
    return [run["status"] for run in sorted(runs, key=lambda run: run["pending-at"])]


@pytest.mark.slow
def test_a_run_over_a_superlink_is_the_run_in_memory(folder: Path, processes: Processes) -> None:
    experiment = tiny.experiment(folder)
    simulate(experiment, folder / "memory")
    write_app(folder, experiment)
    for i in range(3):
        start_site(folder, processes, experiment, i)
    flwr = start_link(folder, processes)

    run, settings = folder / "run", "rounds=3 training.local_steps=2"
    flwr("run", "app", "deployed", "--stream", "--run-config", f'sites=3 folder="{run}" {settings}')
    assert status(flwr) == ["finished:completed"], processes.log("link")
    memory, flower = (path / "adapter" / "adapter_model.safetensors" for path in (folder / "memory", run))
    assert flower.read_bytes() == memory.read_bytes()

    # Flower's own exit status does not tell of a failure, its list does.
    flwr("run", "app", "deployed", "--stream", "--run-config", f'sites=2 folder="{run}" {settings}')
    assert status(flwr) == ["finished:completed", "finished:failed"]
    codes = processes.end()
    assert {name: code for name, code in codes.items() if name.startswith("site")} == dict.fromkeys(
        ("site0", "site1", "site2"), 0
    )
