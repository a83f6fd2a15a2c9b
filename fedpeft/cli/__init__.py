"""The command line; a module that is imported here adds its commands to `app`."""

from fedpeft.cli import keys, merge, peer, server, show, simulate, site, status
from fedpeft.cli.application import app

__all__ = ["app", "keys", "merge", "peer", "server", "show", "simulate", "site", "status"]
