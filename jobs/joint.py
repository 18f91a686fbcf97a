"""Which layers a score came through: `python -m jobs.joint store=results audit=demo`.

s_i = sum_j s_ij over the layers j, for the samples at either end of every ranking, as `joint.parquet` beside the
audit's results. The audit's projector must keep layers apart: projector=identity or projector=mask. Such audits write
the table themselves when they end, and show it on their page; this verb prints it, and makes it for those without.
"""

from dataclasses import dataclass

from concept_trak import UserError
from concept_trak.audit.repair import split_finished
from concept_trak.config import absolute
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.configure import main


@dataclass(frozen=True)
class JointConfig:
    store: str = "results"
    audit: str = ""


def joint(config: JointConfig) -> int:
    """Split the scores, print the strongest layers and write the table."""
    if not config.audit:
        raise UserError("whose scores? audit=AUDIT; `python -m jobs.status` lists them")
    for line in split_finished(Audit(Store(absolute(config.store)), config.audit)):
        print(line)
    return 0


if __name__ == "__main__":
    main(joint, "joint", JointConfig)
