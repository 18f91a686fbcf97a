"""Measure which parameters hold a concept: `python -m jobs.components [key=value ...]`.

Measures one trajectory for every concept and seed, and keeps it as a file in the store. Writes the tables of every
concept, a page, and with `edit.out` a copy of the model without the parameters that hold the concept. The same command
resumes.
"""

from dataclasses import replace

from concept_trak.components.config import ComponentsConfig
from concept_trak.config import absolute
from concept_trak.report.publish_components import run_components
from jobs.configure import main
from jobs.execute import ExecutorMapper, RunConfig, worker_settings


def components(config: ComponentsConfig, run: RunConfig = RunConfig()) -> int:
    """Measure the missing trajectories, then write the tables and edit the model."""
    config = replace(config, store=absolute(config.store))
    run_components(config, ExecutorMapper(run), worker_settings(run.cluster))
    return 0


if __name__ == "__main__":
    main(components, "components", ComponentsConfig, RunConfig)
