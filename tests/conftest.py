"""Set before anything imports Ray or torch: no token file in the home directory, one thread, no network."""

import os
from importlib import import_module

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray starts its workers at a niceness of 15: beside the tests of another process they would get a thirtieth of a core.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What a module with checked shapes is the first to import, jaxtyping has compiled afresh: three thousand modules, and
# half of the time that a test file takes to start. What stands already comes from the bytecode that was installed.
LARGE = (
    "beartype.door", "scipy.stats", "transformers.modeling_utils", "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.transformers.pixart_transformer_2d",
)  # fmt: skip
for module in LARGE:
    import_module(module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
