"""What a process that runs for months asks of its machine."""

import ctypes
import os
import resource
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

_SOON = timedelta(days=30)
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of <malloc.h>


def keep_to_oneself() -> None:
    """Files that this process makes are its user's alone, and it may hold as many connections as it is allowed to."""
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def keep_memory_together() -> None:
    """Let glibc serve all threads from one arena, and keep what is freed for the next megabyte that comes.

    By default each of gRPC's threads has an arena of its own, gives the pages of every piece of a message back to the
    kernel, and faults them in anew for the next: half of the time and most of the memory that a transfer takes
    (mallopt(3)). Where the C library is another, or the environment says how it allocates, nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    if not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20)):
            mallopt(option, value)


def warn_of_expiry(certificate: Path, say: Callable[[str], None]) -> None:
    """Say so where a certificate does not hold for another month.

    Raises:
        IdentityError: the file is no certificate.
    """
    from fedpeft import keys

    until = keys.expires(certificate)
    if until - datetime.now(UTC) < _SOON:
        say(f"{certificate} holds until {until:%Y-%m-%d} only; renew it")
