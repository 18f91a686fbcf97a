"""The three small pipelines as directories, saved as anyone saves theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from concept_trak.models import small

BUILDERS = {"pixels": small.pixel_pipeline, "latents": small.latent_pipeline, "patches": small.patch_pipeline}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of one of `BUILDERS`; not to be changed."""
    made: dict[str, Path] = {}

    def path(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            BUILDERS[kind](0).save_pretrained(made[kind])
        return made[kind]

    return path


@pytest.fixture(params=BUILDERS)
def path(request: pytest.FixtureRequest, saved: Callable[[str], Path]) -> Path:
    return saved(request.param)
