from functools import partial
from pathlib import Path

import pytest

from fedpeft import keys
from fedpeft.cli.keys import commands
from tests.command_line import type_in

typed = partial(type_in, commands)


def test_the_commands_say_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = ("--keys", "coordinator"), ("--keys", "a")
    made = typed("init", "--host", "fl.example.org", "--host", "192.0.2.7", *here)
    assert "a certificate for fl.example.org, 192.0.2.7 and an empty roster" in made
    assert "`fedpeft keys sign NAME.csr --keys coordinator`" in made
    asked = typed("site", "hospital-a", *there)
    assert "next: send a/hospital-a.csr to the coordinator" in asked
    _, own = keys.requested(Path("a/hospital-a.csr"))
    assert own in asked
    refused = typed("sign", "a/hospital-a.csr", "--fingerprint", "0" * 64, *here, code=1)
    assert f"its fingerprint is {own}, the site says 000" in refused and not keys.roster(Path("coordinator"))
    signed = typed("sign", "a/hospital-a.csr", "--fingerprint", own.upper(), *here)
    assert "next: send coordinator/roster/hospital-a.crt and coordinator/ca.crt back to the site" in signed
    installed = typed("install", "coordinator/roster/hospital-a.crt", "coordinator/ca.crt", *there)
    assert keys.fingerprint(Path("coordinator/ca.crt")) in installed and keys.fingerprint(Path("a/ca.crt")) in made
    assert "hospital-a" in typed("list", *here) and "364 days" in typed("list", *here)
    assert "asks again with this key" in typed("site", "hospital-a", *there, code=1)
    assert "send a/hospital-a.csr" in typed("site", "hospital-a", "--renew", *there)
    assert "a running server uses it" in typed("server", "--days", "900", *here)
    assert "899 days" in typed("list", *here)
    assert "a running server needs no restart" in typed("revoke", "hospital-a", *here)
    assert "hospital-a" not in typed("list", *here)


def test_the_commands_report_a_wrong_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "name at least one host" in typed("init", code=2)
    assert "site id 'A'" in typed("site", "A", code=2)
    assert "days must be at least 1" in typed("init", "--host", "localhost", "--days", "0", code=2)
    assert "keys/ca.crt: expected the authority's certificate: No such file" in typed("list", code=1)
    (tmp_path / "file").write_bytes(b"")
    assert "file/keys: Not a directory" in typed("init", "--host", "localhost", "--keys", "file/keys", code=1)
