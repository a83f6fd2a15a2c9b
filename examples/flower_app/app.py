"""A Flower app: the experiment in the YAML beside this file."""

from pathlib import Path

from fedpeft.flower import client_app, server_app

EXPERIMENT = Path(__file__).with_name("experiment.yaml")

server = server_app(EXPERIMENT)
client = client_app(EXPERIMENT)
