"""Flower's ClientApp: the bytes of a task go to a site, the bytes of its reply come back.

On a SuperNode each message is a new process, so nothing heavy is imported before it is needed.
"""

from functools import partial
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedpeft.errors import ConfigError
from fedpeft.runtime import resident
from fedpeft.runtime.flower.post import unwrap, wrap
from fedpeft.runtime.flower.settings import Config, chosen


def client_app(config: Config = None, folder: Path | None = None) -> ClientApp:
    """The ClientApp of an experiment.

    Where the node's config has a `socket`, the resident site process behind it works, and `site` is its name.
    Elsewhere the node is a simulated site, by its `partition-id`.

    Args:
        config: file of a YAML, the dictionary that it holds, an experiment, or None for the demo.
        folder: of the run, where simulated sites keep their state; None: as the run's config says.
    """
    app = ClientApp()
    app.query()(partial(_name, config, folder))
    app.train()(partial(_train, config, folder))
    return app


def _name(config: Config, folder: Path | None, message: Message, context: Context) -> Message:
    """Which site this node is."""
    name = context.node_config.get("site")
    if not name:
        from fedpeft.simulation import site_name

        experiment, _ = chosen(config, folder, context)
        name = site_name(_partition(context, experiment.sites), experiment.sites)
    return Message(wrap(str(name).encode()), reply_to=message)


def _train(config: Config, folder: Path | None, message: Message, context: Context) -> Message:
    request = unwrap(message.content)
    if socket := context.node_config.get("socket"):
        reply = resident.ask(Path(str(socket)), request, message.metadata.ttl)
    else:
        from fedpeft.runtime.flower import simulated

        experiment, where = chosen(config, folder, context)
        reply = simulated.answer(experiment, where, _partition(context, experiment.sites), request)
    return Message(wrap(reply), reply_to=message)


def _partition(context: Context, sites: int) -> int:
    index = context.node_config.get("partition-id")
    if not isinstance(index, int):
        raise ConfigError('which site is this node? start it with --node-config \'site="NAME" socket="PATH"\'')
    if not 0 <= index < sites:
        raise ConfigError(f"the experiment has {sites} sites, this node has partition-id {index}; start {sites} nodes")
    return index
