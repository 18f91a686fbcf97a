"""The audited store is made once, and put back before every test."""

import pytest

from tests.jobs_ops.audited import Audited, build


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Audited:
    return build(tmp_path_factory.mktemp("audited"))


@pytest.fixture
def audited(once: Audited) -> Audited:
    once.restore()
    return once
