"""The example of a deployment, whole, on a tiny model: real processes, real TLS, a real SIGKILL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["experiment.yaml", "site.yaml"])
def test_the_example_s_files_are_what_the_program_takes(name: str) -> None:
    from fedpeft import config

    path = ROOT / "examples" / "three_sites" / name
    if name == "site.yaml":
        assert config.load_site(path).policy.policy().min_cohort == 3
    else:
        assert config.load(path).sites == 3


def test_a_deployment_ends_in_the_adapter_of_the_simulation(tmp_path: Path) -> None:
    raw = tiny.experiment(tmp_path, rounds=4)
    source, partition = raw["data"]["source"], raw["data"]["partition"]  # type: ignore[index]
    site = {key: raw[key] for key in ("model", "peft")}
    site |= {"server": "localhost:1", "data": {"source": source}, "first_wait_s": 0.2, "longest_wait_s": 1.0}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    command = [
        sys.executable, "-m", "examples.three_sites", "--folder", tmp_path / "deployed",
        "--experiment", tmp_path / "experiment.yaml", "--site", tmp_path / "site.yaml",
        "--source", source, "--partition", partition,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    over_grpc, over_memory = (
        next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith(f"adapter over {way}"))
        for way in ("gRPC", "memory")
    )
    assert over_grpc == over_memory
    assert "killed site-2 with SIGKILL" in done.stdout
    assert (tmp_path / "deployed" / "runs" / "tiny" / "report.html").exists()
