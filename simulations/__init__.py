"""Benches: every claim has a command here that prints one table."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
