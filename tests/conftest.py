"""What tests share: no network, one thread, and tiny models built from configs."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1")

from jaxtyping import install_import_hook

# Shapes and types of every annotated function of these packages are checked on every call of a test.
install_import_hook(["fedpeft.codecs", "fedpeft.strategies", "fedpeft.space"], "beartype.beartype")

import pytest
import torch

from fedpeft import kernels


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_warm_kernels() -> None:
    torch.set_num_threads(1)
    kernels.warm_up()
