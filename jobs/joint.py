"""Which layers a score came through: `python -m jobs.joint store=results audit=demo`.

s_i = sum_j s_ij over the layers j, for the samples at either end of every ranking, as `joint.parquet` beside the
audit's results. The audit's projector must keep layers apart: projector=identity or projector=mask. Such audits write
the table themselves when they end, and show it on their page; here it is told, and made for those that have none.
"""

from collections import defaultdict
from dataclasses import dataclass

from concept_trak.attribution.by_layer import layer_columns
from concept_trak.audit.layer_scores import rows, split, write
from concept_trak.audit.repair import settings
from concept_trak.audit.worker import open_model
from concept_trak.config import ClusterConfig, absolute
from concept_trak.store.manifest import Audit, read_table
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.exit_codes import ended

SHOWN = 5


@dataclass(frozen=True)
class JointConfig:
    store: str = "results"
    audit: str = ""


def joint(config: JointConfig) -> int:
    """Split, print the strongest layers and write; exit 0, or 4 if storage fails.

    Raises:
        ValueError: the audit is not named, missing or unfinished, or its projector mixes layers.
    """
    return ended(lambda: _joint(config))


def _joint(config: JointConfig) -> int:
    if not config.audit:
        raise ValueError("whose scores? audit=AUDIT; `python -m jobs.status` lists them")
    store = Store(absolute(config.store))
    audit = Audit(store, config.audit)
    made_with = settings(audit, ClusterConfig(kind="serial"))
    sizes = {name: p.numel() for name, p in open_model(made_with).parameters.items()}
    found = layer_columns(made_with.projector, sizes)
    parts = split(audit, found)
    made = list(rows(read_table(audit, "top.parquet").to_pylist(), found.names, parts))
    print(f"written    {store.uri.removeprefix('file://')}/{write(audit, made)}")
    total: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in made:
        if (row["form"], row["end"]) == ("damped", "top"):
            total[row["concept"], row["method"]][row["layer"]] += row["score"]
    for (concept, method), by_layer in total.items():
        whole = sum(by_layer.values())
        first = sorted(by_layer.items(), key=lambda one: -abs(one[1]))[:SHOWN]
        said = ", ".join(f"{layer} {score / whole:.0%}" for layer, score in first) if whole else "nothing"
        print(f"{concept} by {method}: of the top's scores, {said}")
    return 0


if __name__ == "__main__":
    main(JointConfig, "joint", joint)
