"""Keys are made once."""

from pathlib import Path

import pytest

from tests.runtime import site_world


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder `server`, and one for each of the sites that its roster holds."""
    return site_world.make_keys(tmp_path_factory.mktemp("keys"))
