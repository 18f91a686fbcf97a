"""From a configuration to the published tables and page of a components run, and to the edited model."""

from concept_trak import UserError
from concept_trak.audit.mapper import Mapper, in_order, serial
from concept_trak.components.config import ComponentsConfig, components_settings, measured_concepts
from concept_trak.components.pipeline import measure_missing, run_calibration, run_doses, summary_lines
from concept_trak.components.units import write_measurement_names
from concept_trak.components.workers import EditWorker, SummaryWorker
from concept_trak.config import WorkerSettings
from concept_trak.report.components_page import publish_components
from concept_trak.store.store import Store


def run_components(
    config: ComponentsConfig, mapper: Mapper = serial, worker: WorkerSettings = WorkerSettings(gpu=True)
) -> None:
    """Measure the trajectories that are missing, then write the tables, the page and, with `edit.out`, the model."""
    for key, value, example in (
        ("model.path", config.model.path, "model.path=assets/demo"),
        ("concepts", config.concepts, "concepts=[{name: red, prompt: a red square, without_prompt: a square}]"),
    ):
        if not value:
            raise UserError(f"{key} is not set; expected something like {example}")
    inquest, cases = components_settings(config, worker), measured_concepts(config)
    units = {inquest.file(unit): unit for c in cases for some in (c.units, *c.references) for unit in some}
    write_measurement_names(Store(config.store), config.name, list(units))
    measure_missing(config, inquest, units, mapper)
    concluded = list(zip(cases, in_order(cases, mapper("conclude", SummaryWorker, inquest, cases)), strict=True))
    for _, conclusion in concluded:
        print(summary_lines(conclusion, config.objective))
    print(f"tables     {config.store}/components/{config.name}/components_groups/*.parquet, components_top/*.parquet")
    if config.doses:
        run_doses(config, inquest, cases, mapper)
    if config.calibration.ablations:
        run_calibration(config, inquest, cases, mapper)
    print(f"page       {config.store}/{publish_components(config, inquest, concluded)}")
    if e := config.edit if config.edit.out else None:
        changed = EditWorker(inquest)(cases[0], e.choice, e.factor, e.out, e.gate)
        print(f"edited     {changed} parameters times {e.factor:g}: {e.out}")
