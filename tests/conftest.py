"""Set before anything imports Ray or torch: no token file in the home directory, one thread, no network."""

import os

import pytest

from tests import shape_checks

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray starts its workers at a niceness of 15: beside the tests of another process they would get a thirtieth of a core.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

shape_checks.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
