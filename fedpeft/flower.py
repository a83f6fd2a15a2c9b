"""The two apps of a Flower project: `server_app` and `client_app` of an experiment."""

from fedpeft.runtime.flower.client import client_app
from fedpeft.runtime.flower.server import server_app

__all__ = ["client_app", "server_app"]
