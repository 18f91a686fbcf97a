"""Which parameters hold a concept: `python -m jobs.components [key=value ...]`.

Every (concept, seed) is one trajectory and one file in the store, measured once; then the tables of every concept, a
page about them and, with `edit.out`, a copy of the model without what holds it. The same command goes on where it
stopped.
"""

from collections.abc import Mapping
from dataclasses import replace

from cluster.executor import Task
from concept_trak.accrual import Concluded, Edit, Inquest, Unit
from concept_trak.casebook import open_book
from concept_trak.components import evaluations
from concept_trak.store.commit import Store
from jobs.configure import absolute, main
from jobs.failure import ended
from jobs.findings import publish
from jobs.inquiry import ComponentsConfig, cases_of, inquest_of, mapped
from jobs.trials import calibrated, dosed


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
    concluded = mapped(config, "conclude", Task("concept_trak.accrual:Conclude", inquest), cases)
    for _, found in concluded:
        print(told(found, config.objective))
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


def measure(config: ComponentsConfig, inquest: Inquest, units: Mapping[str, Unit]) -> None:
    """The trajectories, by their files, that have none yet."""
    store = Store(config.store)
    missing = [unit for name, unit in units.items() if store.size(name) is None]
    spent = sum(evaluations(unit.objective, config.probe, bool(unit.image)) for unit in missing)
    said = f", {len(missing)} of them to measure: {spent:,} network evaluations" if missing else ", all measured"
    print(f"measure    {len(units)} trajectories{said}", flush=True)
    for _ in mapped(config, "measure", Task("concept_trak.accrual:Measure", inquest), missing):
        pass


def told(found: Concluded, objective: str) -> str:
    """One concept in a line."""
    moved = f", moves the prediction by {found.expressed:.3f} of its size" if objective != "amplify" else ""
    strongest = ", ".join(f"{name} {a:+.2e}" for name, a in found.tensors)
    return f"{found.concept:<10} J {found.j:.3e}{moved}; strongest: {strongest}"


if __name__ == "__main__":
    main(ComponentsConfig, "components", components)
