"""Ray for the tests: started once for all of them, on this machine."""

from pathlib import Path

import pytest

from cluster.executor import Budgets
from cluster.serial import Serial

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def on_ray():
    """Makes executors on one Ray whose workers can import the factories beside the tests."""
    import ray

    from cluster.on_ray import OnRay

    def make(**fields):
        fields.setdefault("env_vars", {"PYTHONPATH": HERE})
        return OnRay(**{"workers": 2, **fields})

    make().connect()
    yield make
    ray.shutdown()


class FakeTime:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(params=["serial", "ray"])
def make_executor(request):
    """Every executor there is, by its budgets: what holds for one must hold for all."""
    if request.param == "serial":
        time = FakeTime()
        return lambda budgets=Budgets(): Serial(budgets, sleep=time.sleep, clock=time.clock)
    on_ray = request.getfixturevalue("on_ray")
    return lambda budgets=Budgets(): on_ray(budgets=budgets)
