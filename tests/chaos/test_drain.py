"""How a deployment ends, and goes on: SIGTERM, a site that is away, a full disk, a site that may not take part."""

import json
import resource
from functools import partial
from pathlib import Path

import yaml

from fedpeft.federation import Journal
from fedpeft.watching import picture
from tests.chaos.deployment import Deployment
from tests.chaos.sight import Sight

PREFIX = "base_model.model.bert.encoder.layer.0.attention.self"
LONG = {"local_steps": 100, "batch_size": 4, "learning_rate": 1e-2}


def check_files(run: Path) -> None:
    """Nothing in a run's folder is half written."""
    assert not list(run.rglob("*.tmp"))
    for path in run.rglob("*.json"):
        json.loads(path.read_text())
    for path in run.rglob("*.jsonl"):
        text = path.read_text()
        assert text == "" or text.endswith("\n")
        assert [json.loads(line[line.index("{") :]) for line in text.splitlines()]
    assert yaml.safe_load((run / "config.yaml").read_text())["name"] == "tiny"
    size = (run / "journal" / "log.jsonl").stat().st_size
    with Journal(run / "journal") as journal:
        for blob in (run / "journal" / "blobs").iterdir():
            journal.get(blob.name)
    assert (run / "journal" / "log.jsonl").stat().st_size == size


def test_a_server_and_a_site_that_are_stopped_leave_whole_files_and_go_on(tmp_path: Path) -> None:
    with Deployment(tmp_path, sites=2, rounds=3, training=LONG) as deployment:
        server, site, sight = deployment.server, deployment.sites["site-1"], Sight(deployment)
        deployment.start(fresh=("server", "site-1"))
        deployment.until(lambda: sight.look().rounds and sight.phase("server") == "training")
        for program, code, words in (
            (server, 3, "the server was asked to stop; the run can be taken up"),
            (site, 0, "the site was asked to stop"),
        ):
            program.terminate()
            assert program.wait() == code, program.printed
            assert words in program.printed
            assert "Traceback" not in program.printed
        assert picture.read(deployment.run).state() == "stopped"
        check_files(deployment.run)
        server.start()
        site.start()
        assert server.wait() == 0, deployment.printed()
        check_files(deployment.run)
        deployment.stop_sites()
        assert deployment.equals_simulation()


def test_a_site_that_is_stopped_keeps_the_work_at_hand(tmp_path: Path) -> None:
    with Deployment(tmp_path, sites=2, rounds=1, training=LONG | {"local_steps": 400}) as deployment:
        site, sight = deployment.sites["site-1"], Sight(deployment)
        deployment.start()
        deployment.until(lambda: sight.look().phase("site-1") == "training")
        deployment.until(lambda: picture.read(deployment.run).sites["site-1"].state == "training")
        site.terminate()
        assert site.wait() == 0, site.printed
        assert sight.look().replied["site-1"] == 1, "it left its work undone"
        assert not [r for r in sight.of("ACCEPT") if r["node"] == "site-1"], "it was done before it was asked to stop"
        assert not list((tmp_path / "site-1").rglob("*.tmp"))
        site.start()
        deployment.until(lambda: sight.look() and deployment.server.ended)
        assert deployment.server.wait() == 0, deployment.printed()
        assert sight.replies == {(r["node"], r["round"]): {r["reply"]} for r in sight.of("ACCEPT")}
        deployment.stop_sites()
        assert deployment.equals_simulation()


def test_a_run_below_quorum_waits_for_its_sites(tmp_path: Path) -> None:
    with Deployment(tmp_path, sites=2, rounds=2, deadline_s=2, training=LONG) as deployment:
        server, site, sight = deployment.server, deployment.sites["site-2"], Sight(deployment)
        deployment.start()
        deployment.until(lambda: sight.look().phase("site-2") == "training")
        assert site.kill() == -9
        deployment.until(lambda: sight.look().of("FAIL"))
        assert not server.ended
        deployment.until(lambda: " of 2 clients were counted, 2 needed" in picture.read(deployment.run).failure)
        site.start()
        assert server.wait() == 0, deployment.printed()
        check_files(deployment.run)
        deployment.stop_sites()


def test_a_full_disk_ends_the_server_and_keeps_the_run(tmp_path: Path) -> None:
    with Deployment(tmp_path, sites=2, rounds=5, training=LONG) as deployment:
        server, sight = deployment.server, Sight(deployment)
        deployment.start()
        deployment.until(lambda: sight.look().rounds >= 2)
        server.terminate()
        assert server.wait() == 3, server.printed
        log = deployment.run / "journal" / "log.jsonl"
        before, records, said = log.read_bytes(), sight.look().records, len(server.printed)
        server.start(first=partial(limit_files, len(before) + 300))
        assert server.wait() == 1, server.printed
        printed = server.printed[said:]
        assert f"error: {deployment.run} cannot be written: File too large; what is there stays" in printed
        assert "Traceback" not in printed
        assert log.stat().st_size == len(before) + 300
        with Journal(deployment.run / "journal") as journal:
            assert journal.records[: len(records)] == records
        server.start()
        assert server.wait() == 0, deployment.printed()
        check_files(deployment.run)
        deployment.stop_sites()
        assert deployment.equals_simulation()


def test_a_site_with_another_config_is_refused_and_both_sides_say_why(tmp_path: Path) -> None:
    with Deployment(tmp_path, sites=2, rounds=1) as deployment:
        site, described = deployment.sites["site-2"], tmp_path / "site-2" / "site.yaml"
        right = described.read_text()
        described.write_text(right.replace("r=2", "r=4"))
        deployment.start()
        assert site.wait() == 1, site.printed
        why = "query.lora_A.weight': expected shape (2, 16) as lora_A, got (4, 16) as lora_A"
        assert f"error: the server refuses this site: other space: slot '{PREFIX}.{why}" in site.printed
        deployment.until(lambda: f"site-2  rejected  other space: slot '{PREFIX}.{why}" in deployment.server.printed)
        assert not deployment.server.ended
        described.write_text(right)
        site.start()
        assert deployment.server.wait() == 0, deployment.printed()
        deployment.stop_sites()


def limit_files(largest: int) -> None:
    """No file may grow beyond so many bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
