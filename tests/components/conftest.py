"""A toy model whose negative is another label, since it has no empty condition."""

import pytest

from tests.toys import Toy


@pytest.fixture(scope="session")
def toy() -> Toy:
    model = Toy()
    model.negative, model.combinations = "other_label", ("1", "2", "3")
    return model
