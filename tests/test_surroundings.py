"""What a long-lived process asks of its machine, seen from processes of their own."""

import os
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from fedpeft.cli.surroundings import keep_memory_together
if "keep" in sys.argv:
    keep_memory_together()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
here = threading.Barrier(4)
def allocate():
    here.wait()
    for size in (100, 10_000, 1 << 20):
        assert libc.malloc(ctypes.c_size_t(size))
    here.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(*arguments: str, **environment: str) -> int:
    """How many arenas glibc made for four threads."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", HEAPS, *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=clean | environment)
    return told.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
                    reason="another C library than glibc")  # fmt: skip
def test_all_threads_share_one_arena_unless_the_environment_says_otherwise() -> None:
    assert heaps() > 1
    assert heaps("keep") == 1
    assert heaps("keep", MALLOC_ARENA_MAX="8") > 1
