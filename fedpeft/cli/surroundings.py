"""What a process that runs for months asks of its machine."""

import os
import resource
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

_SOON = timedelta(days=30)


def keep_to_oneself() -> None:
    """Files that this process makes are its user's alone, and it may hold as many connections as it is allowed to."""
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def warn_of_expiry(certificate: Path, say: Callable[[str], None]) -> None:
    """Say so where a certificate does not hold for another month.

    Raises:
        IdentityError: the file is no certificate.
    """
    from fedpeft import keys

    until = keys.expires(certificate)
    if until - datetime.now(UTC) < _SOON:
        say(f"{certificate} holds until {until:%Y-%m-%d} only; renew it")
