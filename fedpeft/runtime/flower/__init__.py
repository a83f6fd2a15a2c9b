"""Flower as the engine: its links carry the messages, the round loop and the clients are fedpeft's.

Importing this package, before anything of Flower, switches off what Flower and Ray send home and what Flower installs
at run time; a variable that is set already is left as it is.
"""

import os
from importlib import metadata

from fedpeft.errors import ConfigError

VERSION = "1.41.0"

for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as later versions of Ray do, which this one says in every process
}.items():
    os.environ.setdefault(_name, _value)

try:
    _found = metadata.version("flwr")
except metadata.PackageNotFoundError:
    raise ConfigError("Flower is not installed: pip install 'fedpeft[flower]'") from None
if _found != VERSION:
    raise ConfigError(f"expected Flower {VERSION}, found {_found}: pip install 'fedpeft[flower]'")
