"""The command line; a module that is imported here adds its commands to `app`."""

from fedpeft.cli import show, simulate, status
from fedpeft.cli.application import app

__all__ = ["app", "show", "simulate", "status"]
