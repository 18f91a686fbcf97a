"""Which parameters hold a concept: `python -m jobs.components [key=value ...]`.

Every (concept, seed) is one trajectory and one file in the store, measured once; then the tables of every concept, a
page about them and, with `edit.out`, a copy of the model without what holds it. The same command goes on where it
stopped.
"""

from dataclasses import replace

from cluster.executor import Task
from concept_trak.components.config import ComponentsConfig, cases_of, inquest_of
from concept_trak.components.pipeline import calibrated, dosed, measure, summary_lines
from concept_trak.components.units import open_book
from concept_trak.components.workers import Conclude, Edit
from concept_trak.config import absolute
from concept_trak.report.components_page import publish
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.execute import mapped
from jobs.exit_codes import ended


def components(config: ComponentsConfig) -> int:
    """Every trajectory that is not there yet, then the tables and the edit; returns the exit code."""
    return ended(lambda: _components(replace(config, store=absolute(config.store))))


def _components(config: ComponentsConfig) -> int:
    for key, value, example in (
        ("model.path", config.model.path, "model.path=assets/demo"),
        ("concepts", config.concepts, "concepts=[{name: red, prompt: a red square, without_prompt: a square}]"),
    ):
        if not value:
            raise ValueError(f"{key} is not set; expected something like {example}")
    inquest, cases = inquest_of(config), cases_of(config)
    units = {inquest.file(unit): unit for c in cases for some in (c.units, *c.references) for unit in some}
    open_book(Store(config.store), config.name, list(units))
    measure(config, inquest, units)
    concluded = mapped(config, "conclude", Task(Conclude, inquest), cases)
    for _, found in concluded:
        print(summary_lines(found, config.objective))
    print(f"tables     {config.store}/components/{config.name}/components_groups/*.parquet, components_top/*.parquet")
    if config.doses:
        dosed(config, inquest, cases)
    if config.calibration.ablations:
        calibrated(config, inquest, cases)
    print(f"page       {config.store}/{publish(config, inquest, concluded)}")
    if e := config.edit if config.edit.out else None:
        changed = Edit(inquest)(cases[0], e.choice, e.factor, e.out, e.gate)
        print(f"edited     {changed} parameters times {e.factor:g}: {e.out}")
    return 0


if __name__ == "__main__":
    main(ComponentsConfig, "components", components)
