"""From a configuration to the published tables and page of a components run, and to the edited model."""

from concept_trak import UserError
from concept_trak.audit.mapper import Mapper, serial
from concept_trak.components.config import ComponentsConfig, EditConfig, components_settings, measured_concepts
from concept_trak.components.edit import EditTask, EditWorker
from concept_trak.components.pipeline import measure_missing, run_calibration, run_doses, summarize, summary_line
from concept_trak.components.units import write_measurement_names
from concept_trak.components.workers import ComponentsSettings, MeasuredConcept
from concept_trak.config import WorkerSettings
from concept_trak.report.components_page import publish_components
from concept_trak.store.store import Store


def run_components(
    config: ComponentsConfig, mapper: Mapper = serial, worker: WorkerSettings = WorkerSettings(gpus=1)
) -> None:
    """Measure the trajectories that are missing, then write the tables, the page and, with `edit.out`, the model."""
    for key, value, example in (
        ("model.path", config.model.path, "model.path=assets/demo"),
        ("concepts", config.concepts, "concepts=[{name: red, prompt: a red square, without_prompt: a square}]"),
    ):
        if not value:
            raise UserError(f"{key} is not set; expected something like {example}")
    settings, concepts = components_settings(config, worker), measured_concepts(config)
    units = {settings.file(unit): unit for c in concepts for group in (c.units, *c.references) for unit in group}
    write_measurement_names(Store(config.store), config.name, list(units))
    measure_missing(config, settings, units, mapper)
    summaries = summarize(settings, concepts, mapper)
    for summary in summaries:
        print(summary_line(summary, config.objective))
    print(f"tables     {config.store}/components/{config.name}/components_groups/*.parquet, components_top/*.parquet")
    if config.doses:
        run_doses(config, settings, concepts, mapper)
    if config.calibration.ablations:
        run_calibration(config, settings, concepts, mapper)
    page = publish_components(config, settings, list(zip(concepts, summaries, strict=True)))
    print(f"page       {config.store}/{page}")
    if config.edit.out:
        edit(config.edit, settings, concepts[0])


def edit(config: EditConfig, settings: ComponentsSettings, measured: MeasuredConcept) -> None:
    """Write the edited model. This process does it, because `edit.out` is a folder of this machine."""
    task = EditTask(
        measured=measured,
        choice=config.choice,
        factor=config.factor,
        out=config.out,
        presence=config.presence,
    )
    for _, result in serial("edit", EditWorker, settings, [task]):
        print(f"edited     {result.edited} parameters times {config.factor:g}: {config.out}")
