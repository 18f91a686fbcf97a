"""Set before anything imports Ray or torch: no token file in the home directory, one thread, no network."""

import os
import signal

import pytest

from tests import shape_checks

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray starts its workers at a niceness of 15: beside the tests of another process they would get a thirtieth of a core.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Whoever is started by a shell in the background ignores Ctrl-C, and so do the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

shape_checks.install()


@pytest.fixture(scope="session", autouse=True)
def _files_are_not_flushed():
    """No test cuts the power of this machine, and a small audit flushes 150 times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _pictures_in_few_steps():
    """Of a query's samples: who looks at them sets the usual number of steps."""
    from tests.few_steps import draw_in_few_steps

    with pytest.MonkeyPatch.context() as patch:
        draw_in_few_steps(patch)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
