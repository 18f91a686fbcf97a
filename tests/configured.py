"""The configuration of a verb as its command line makes it."""

from collections.abc import Sequence
from typing import Any

from concept_trak.components.config import ComponentsConfig
from concept_trak.config import AuditConfig
from concept_trak.evaluation.counterfactual import CounterfactualConfig
from concept_trak.evaluation.published import PublishedConfig
from concept_trak.evaluation.suite import BenchmarkConfig
from jobs.audit import AuditRunConfig
from jobs.benchmark import BenchmarkRunConfig
from jobs.configure import configure_all
from jobs.execute import RunConfig
from jobs.verify import VerifyConfig

RUNS: dict[type, tuple[type, ...]] = {
    AuditConfig: (AuditRunConfig,),
    PublishedConfig: (AuditConfig, AuditRunConfig),
    BenchmarkConfig: (BenchmarkRunConfig,),
    ComponentsConfig: (RunConfig,),
    CounterfactualConfig: (RunConfig,),
    VerifyConfig: (RunConfig,),
}


def configure_both(schema: type, default: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """What the verb does, and how its work is done."""
    config, *_, run = configure_all((schema, *RUNS[schema]), default, arguments)
    return config, run


def configure(schema: type, default: str, arguments: Sequence[str]) -> Any:
    """What the verb does."""
    return configure_all((schema, *RUNS.get(schema, ())), default, arguments)[0]
