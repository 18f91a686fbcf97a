"""The stages of a components run over a mapper: measure, summarize, and optionally doses and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from concept_trak.audit.mapper import Mapper, in_order
from concept_trak.components.calibration import (
    CALIBRATION,
    CalibrationTask,
    CalibrationWorker,
    calibration_rows,
    pearson_lines,
)
from concept_trak.components.config import ComponentsConfig
from concept_trak.components.dose_response import DOSES, DoseResult, DoseTask, DoseWorker, dose_rows
from concept_trak.components.measure import evaluations
from concept_trak.components.workers import (
    ComponentsSettings,
    MeasuredConcept,
    MeasureTask,
    MeasureWorker,
    SummaryResult,
    SummaryTask,
    SummaryWorker,
)
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

ABLATIONS_PER_TASK = 25  # so that their states are computed once


def measure_missing(
    config: ComponentsConfig, settings: ComponentsSettings, units: Mapping[str, MeasureTask], mapper: Mapper
) -> None:
    """Measure the trajectories, by their files, that the store does not have."""
    store = Store(config.store)
    missing = [unit for name, unit in units.items() if store.size(name) is None]
    cost = sum(evaluations(unit.objective, config.probe, bool(unit.image)) for unit in missing)
    count = f", {len(missing)} of them to measure: {cost:,} network evaluations" if missing else ", all measured"
    print(f"measure    {len(units)} trajectories{count}", flush=True)
    for _ in mapper("measure", MeasureWorker, settings, missing) if missing else ():
        pass


def summarize(settings: ComponentsSettings, concepts: Sequence[MeasuredConcept], mapper: Mapper) -> list[SummaryResult]:
    """Write the tables of every concept; the results are in the order of the concepts."""
    tasks = [SummaryTask(measured) for measured in concepts]
    return in_order(tasks, mapper("summarize", SummaryWorker, settings, tasks))


def run_doses(
    config: ComponentsConfig, settings: ComponentsSettings, concepts: Sequence[MeasuredConcept], mapper: Mapper
) -> None:
    """Generate pictures without an edit and with every criterion at every dose; write components_doses.parquet."""
    tasks = dose_tasks(config, concepts)
    rows = list[dict[str, Any]]()
    for task, result in zip(tasks, in_order(tasks, mapper("doses", DoseWorker, settings, tasks)), strict=True):
        print(f"dose       {dose_line(task, result)}")
        own = dose_rows(task, result)
        # The pictures without an edit are the same for all concepts.
        names = [task.measured.concept.name] if task.criterion != "none" else [c.concept.name for c in concepts]
        rows += [{**row, "concept": name} for name in names for row in own]
    name = f"components/{config.name}/components_doses.parquet"
    Store(config.store).replace(name, to_parquet(from_rows(DOSES, rows)))


def dose_tasks(config: ComponentsConfig, concepts: Sequence[MeasuredConcept]) -> list[DoseTask]:
    """One task without an edit, then one for every concept, ratio and criterion."""
    none = DoseTask(
        measured=concepts[0],
        criterion="none",
        choice=config.edit.choice,
        factor=config.edit.factor,
        pictures=config.samples,
        seed=config.pictures_seed,
        points=config.pictures_points,
    )
    return [none] + [
        replace(none, measured=measured, criterion=criterion, choice=replace(none.choice, ratio=ratio))
        for measured, ratio, criterion in product(concepts, config.doses, config.criteria)
    ]


def dose_line(task: DoseTask, result: DoseResult) -> str:
    """One dose in a line: the presence of every value of each factor, then the pair with the least."""
    presence = result.presence.tolist()
    rows = list(zip(result.values, result.of, presence, strict=True))
    values = ", ".join(f"{value} {mean:.2f}" for value, of, mean in rows if of != "pair")
    least, _, lowest = min((row for row in rows if row[1] == "pair"), key=lambda row: row[2])
    edit = ""
    if task.criterion != "none":
        edit = f"{task.measured.concept.name}, {task.choice.ratio:g} ({result.edited}) by "
    return f"{edit}{task.criterion}: {values}; least {least} {lowest:.2f}"


def run_calibration(
    config: ComponentsConfig, settings: ComponentsSettings, concepts: Sequence[MeasuredConcept], mapper: Mapper
) -> None:
    """Write the predicted and actual change of J by random ablations as components_calibration.parquet."""
    c = config.calibration
    numbers = [range(i, min(i + ABLATIONS_PER_TASK, c.ablations)) for i in range(0, c.ablations, ABLATIONS_PER_TASK)]
    tasks = [CalibrationTask(*each) for each in product(concepts, c.fractions, numbers)]
    results = in_order(tasks, mapper("calibration", CalibrationWorker, settings, tasks))
    rows = [row for task, result in zip(tasks, results, strict=True) for row in calibration_rows(task, result)]
    for measured in concepts:
        print(*pearson_lines([row for row in rows if row["concept"] == measured.concept.name]), sep="\n")
    name = f"components/{config.name}/components_calibration.parquet"
    Store(config.store).replace(name, to_parquet(from_rows(CALIBRATION, rows)))


def summary_line(summary: SummaryResult, objective: str) -> str:
    """One concept in a line."""
    moved = f", moves the prediction by {summary.expressed:.3f} of its size" if objective != "amplify" else ""
    strongest = ", ".join(f"{name} {a:+.2e}" for name, a in zip(summary.tensors, summary.alphas, strict=True))
    return f"{summary.concept:<10} J {summary.j:.3e}{moved}; strongest: {strongest}"
