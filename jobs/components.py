"""Which parameters hold a concept: `python -m jobs.components [key=value ...]`.

Every (concept, seed) is one trajectory and one file in the store, measured once; then the tables of every concept, a
page about them and, with `edit.out`, a copy of the model without what holds it. The same command goes on where it
stopped.
"""

from dataclasses import replace

from concept_trak.components.config import ComponentsConfig
from concept_trak.config import absolute
from concept_trak.report.publish_components import run_components
from jobs.configure import main
from jobs.execute import ExecutorMapper, RunConfig, worker_settings


def components(config: ComponentsConfig, run: RunConfig = RunConfig()) -> int:
    """Every trajectory that is not there yet, then the tables and the edit."""
    config = replace(config, store=absolute(config.store))
    run_components(config, ExecutorMapper(run), worker_settings(run.cluster))
    return 0


if __name__ == "__main__":
    main(components, "components", ComponentsConfig, RunConfig)
