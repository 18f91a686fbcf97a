"""Split scores over the model's layers: `python -m jobs.joint store=results audit=demo`.

Prints s_i = sum_j s_ij, over the layers j, for the samples at both ends of every ranking, and writes it to the audit's
`joint.parquet` if the audit has no such file. The audit's projector must keep layers separate: projector=identity or
projector=mask. Audits with such a projector write the table when they end, and show it on their page.
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
        raise UserError("audit is empty; give audit=AUDIT; `python -m jobs.status` lists the audits")
    for line in split_finished(Audit(Store(absolute(config.store)), config.audit)):
        print(line)
    return 0


if __name__ == "__main__":
    main(joint, "joint", JointConfig)
