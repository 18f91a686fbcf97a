"""A measurement is named by everything that decides its numbers."""

from dataclasses import replace

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.state import Probe
from concept_trak.audit.worker import WorkerSettings
from concept_trak.components.workers import ComponentsSettings, MeasureTask
from concept_trak.config import ModelConfig

SETTINGS = ComponentsSettings(
    store="results",
    model=ModelConfig("model"),
    worker=WorkerSettings(),
    name="red",
    objective="erase",
    probe=Probe("sampling", "concept_reward"),
    unit=False,
    top=10,
    identity={"unet": "1"},
)
TASK = MeasureTask(Concept("red", prompt="a red circle"), "erase", 0)


def test_another_size_of_the_pictures_is_another_measurement():
    def name(resolution: int) -> str:
        return replace(SETTINGS, model=replace(SETTINGS.model, resolution=resolution)).file(TASK)

    assert len({SETTINGS.file(TASK), name(480), name(832)}) == 3
    assert name(0) == SETTINGS.file(TASK)
