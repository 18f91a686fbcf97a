"""One world and one plain audit of it for all tests of the job; whoever changes anything does so in a folder of its
own.
"""

import pytest

from tests.jobs.world import Found, World, build


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def baseline(world, tmp_path_factory) -> Found:
    """What other ways of doing the same audit are compared with: 48 rows in 6 shards, serial, batches of 8."""
    return world.audit(tmp_path_factory.mktemp("baseline"))
