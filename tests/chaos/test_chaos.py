"""A server and sites that are killed again and again, over a line that is cut all the time: the same adapter."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import pytest

from tests.chaos.deployment import Deployment
from tests.chaos.program import SECONDS
from tests.chaos.proxy import Weather
from tests.chaos.sight import Sight

Aim: TypeAlias = tuple[str, str, int]  # "server", "site" or "all"; the phase that they shall be in, "" for any; times

LONG: Sequence[Aim] = (
    *(("server", phase, 3) for phase in ("training", "upload", "commit", "")),
    *(("site", phase, 4) for phase in ("training", "upload", "")),
    ("all", "", 2),
)
SMALL = {"training": {"local_steps": 20, "batch_size": 4, "learning_rate": 1e-2}}
LARGE = {
    "peft": "LoraConfig(r=12288, lora_alpha=4, target_modules=['query', 'value'], lora_dropout=0.1)",
    "codec": "Identity()",
    "broadcast": "Identity('float16')",
}
NO_WHOLE_REPLY = Weather(least=600_000, most=2_600_000, stalls=0.001)


class Storm:
    """Kills processes of a deployment, and starts each again at once.

    Args:
        deployment: whose.
        seed: of what is drawn.
    """

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self._deployment, self._sites, self._random = deployment, list(deployment.sites), Random(seed)
        self.sight = Sight(deployment)
        self.kills: Counter[tuple[str, str]] = Counter()

    def rage(self, at: str, phase: str, times: int) -> None:
        """Kill so often in a phase; a kill that comes too late for it is one more."""
        for _ in range(times):
            wanted = self.kills[at, phase] + 1
            while True:
                self._watch(self._random.uniform(0, 0.5 if phase else 2))
                self._kill(self._victims(at, phase))
                if not phase or self.kills[at, phase] >= wanted:
                    break

    def over(self) -> None:
        """Let the run come to its end."""
        server = self._deployment.server
        self._deployment.until(lambda: self.sight.look() and server.ended, 5 * SECONDS)
        assert server.wait() == 0, self._deployment.printed()
        self._deployment.stop_sites()
        self.sight.look()

    def _victims(self, at: str, phase: str) -> list[str]:
        if at == "all":
            return ["server", *self._sites]
        candidates = ["server"] if at == "server" else self._random.sample(self._sites, len(self._sites))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            self._look()
            if found := [name for name in candidates if phase in ("", self.sight.phase(name))]:
                return found[:1]
            time.sleep(0.001)
        raise AssertionError(f"no {at} in {phase}\n{self._deployment.printed()}")

    def _kill(self, names: Sequence[str]) -> None:
        """What they were in the midst of is read once they are dead."""
        programs = {name: self._deployment.sites.get(name, self._deployment.server) for name in names}
        for program in programs.values():
            assert program.kill() == -9, program.printed
        self.sight.look()
        self.kills.update(("server" if name == "server" else "site", self.sight.phase(name)) for name in names)
        for program in programs.values():
            program.start()

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()
            time.sleep(0.001)

    def _look(self) -> None:
        self.sight.look()
        assert not self._deployment.server.ended, f"the run ended too soon\n{self._deployment.printed()}"


def survive(folder: Path, seed: int, weather: Weather, rounds: int, aims: Sequence[Aim], **changes: Any) -> Storm:
    """A run of so many rounds in a storm ends as its simulation does, and counts each update once."""
    with Deployment(folder, weather, seed, rounds=rounds, **changes) as deployment:
        storm = Storm(deployment, seed)
        deployment.start()
        for aim in aims:
            storm.rage(*aim)
        storm.over()
        check_counted_once(storm.sight, rounds)
        assert deployment.equals_simulation()
        proxy = deployment.proxy
        assert proxy
        assert proxy.ends.total() >= len(aims)
        needed = sum(record["up_bytes"] for record in storm.sight.of("ACCEPT"))
        kills = ", ".join(f"{at} in {phase} {n}" for (at, phase), n in sorted(storm.kills.items()))
        print(
            f"\n{storm.kills.total()} kills ({kills}); {proxy.connections} connections, ended by the line: "
            f"{dict(proxy.ends)}; {proxy.up_bytes:,} bytes up for {needed:,} of replies"
        )
        return storm


def check_counted_once(sight: Sight, rounds: int) -> None:
    """In each round, each site has made one reply durable, and it is the one that was counted."""
    once = [(site, number) for number in range(1, rounds + 1) for site in sorted(sight.replied)]
    counted = sight.of("ACCEPT")
    assert sorted((record["round"], record["node"]) for record in counted) == [(number, site) for site, number in once]
    assert sight.replies == {(record["node"], record["round"]): {record["reply"]} for record in counted}
    assert [record["round"] for record in sight.of("COMMIT")] == list(range(1, rounds + 1))
    assert not [event for event in sight.events if event["event"] in ("alarm", "failed")]


def test_a_run_survives_a_kill_at_each_point(tmp_path: Path) -> None:
    aims = [("site", "training", 1), ("server", "upload", 1), ("site", "upload", 1), ("server", "commit", 1)]
    survive(tmp_path, 1, Weather(silence_s=2), 10, aims, **SMALL)


def test_uploads_go_on_over_connections_too_short_for_one(tmp_path: Path) -> None:
    aims = [("server", "upload", 1), ("site", "upload", 1)]
    storm = survive(tmp_path, 1, NO_WHOLE_REPLY, 2, aims, **LARGE)
    assert min(record["up_bytes"] for record in storm.sight.of("ACCEPT")) > NO_WHOLE_REPLY.most


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("weather", "rounds", "changes"), [(Weather(), 80, SMALL), (NO_WHOLE_REPLY, 12, LARGE)], ids=["small", "large"]
)
def test_a_run_survives_a_long_storm(
    tmp_path: Path, seed: int, weather: Weather, rounds: int, changes: dict[str, Any]
) -> None:
    storm = survive(tmp_path, seed, weather, rounds, LONG, **changes)
    assert storm.kills.total() >= 30
