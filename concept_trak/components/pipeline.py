"""What a choice of parameters does, tried in memory: what a model then draws, and how far alphas predicted J."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from concept_trak.audit.mapper import Mapper, in_order
from concept_trak.components import calibration
from concept_trak.components.calibration import CalibrationTask
from concept_trak.components.config import ComponentsConfig
from concept_trak.components.dose_response import DOSES, DoseTask, DoseWorker
from concept_trak.components.measure import evaluations
from concept_trak.components.workers import (
    ComponentsSettings,
    MeasuredConcept,
    MeasureTask,
    MeasureWorker,
    SummaryResult,
)
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

AT_ONCE = 25  # ablations in an item: their states are made once


def run_doses(
    config: ComponentsConfig, inquest: ComponentsSettings, cases: Sequence[MeasuredConcept], mapper: Mapper
) -> None:
    """What is drawn without an edit, and with every arm at every dose, as components_doses.parquet."""
    e, how = config.edit, (config.samples, config.pictures_seed, config.pictures_points)
    each = product(cases, config.doses, config.arms)
    none = DoseTask(cases[0], "none", e.choice, e.factor, *how)
    items = [none, *(DoseTask(case, arm, replace(e.choice, ratio=ratio), e.factor, *how) for case, ratio, arm in each)]
    rows = list[dict[str, Any]]()
    for item, drawn in zip(items, in_order(items, mapper("doses", DoseWorker, inquest, items)), strict=True):
        print(f"dose       {dose_line(item, drawn)}")
        rows += drawn if item is not none else [{**row, "concept": c.concept.name} for c in cases for row in drawn]
    name = f"components/{config.name}/components_doses.parquet"
    Store(config.store).replace(name, to_parquet(from_rows(DOSES, rows)))


def dose_line(item: DoseTask, rows: Sequence[dict[str, Any]]) -> str:
    """One dose in a line: by value of each factor, then the pair that is seen least."""
    seen = ", ".join(f"{row['value']} {row['presence']:.2f}" for row in rows if row["of"] != "pair")
    least = min((row for row in rows if row["of"] == "pair"), key=lambda row: row["presence"])
    ratio = "" if item.arm == "none" else f"{item.case.concept.name}, {item.choice.ratio:g} ({rows[0]['edited']}) by "
    return f"{ratio}{item.arm}: {seen}; least {least['value']} {least['presence']:.2f}"


def run_calibration(
    config: ComponentsConfig, inquest: ComponentsSettings, cases: Sequence[MeasuredConcept], mapper: Mapper
) -> None:
    """Predicted and actual J of random ablations, as components_calibration.parquet; Pearson in words."""
    c = config.calibration
    starts = range(0, c.ablations, AT_ONCE)
    numbers = [tuple(range(first, min(first + AT_ONCE, c.ablations))) for first in starts]
    items = [CalibrationTask(case, fraction, some) for case in cases for fraction in c.fractions for some in numbers]
    results = in_order(items, mapper("calibration", calibration.CalibrationWorker, inquest, items))
    rows = [row for each in results for row in each]
    for case in cases:
        print(*calibration.pearson_lines([row for row in rows if row["concept"] == case.concept.name]), sep="\n")
    name = f"components/{config.name}/components_calibration.parquet"
    Store(config.store).replace(name, to_parquet(from_rows(calibration.CALIBRATION, rows)))


def measure_missing(
    config: ComponentsConfig, inquest: ComponentsSettings, units: Mapping[str, MeasureTask], mapper: Mapper
) -> None:
    """The trajectories, by their files, that have none yet."""
    store = Store(config.store)
    missing = [unit for name, unit in units.items() if store.size(name) is None]
    spent = sum(evaluations(unit.objective, config.probe, bool(unit.image)) for unit in missing)
    count = f", {len(missing)} of them to measure: {spent:,} network evaluations" if missing else ", all measured"
    print(f"measure    {len(units)} trajectories{count}", flush=True)
    for _ in mapper("measure", MeasureWorker, inquest, missing) if missing else ():
        pass


def summary_lines(summary: SummaryResult, objective: str) -> str:
    """One concept in a line."""
    moved = f", moves the prediction by {summary.expressed:.3f} of its size" if objective != "amplify" else ""
    strongest = ", ".join(f"{name} {a:+.2e}" for name, a in summary.tensors)
    return f"{summary.concept:<10} J {summary.j:.3e}{moved}; strongest: {strongest}"
