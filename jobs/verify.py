"""Compare every file with its record: `python -m jobs.verify [store=results] [audit=demo] [repair=true]`.

Without `audit`, checks every audit of the store, the source indices, the measurements of components and the kept
states. `repair=true` computes damaged features again on `cluster`, with the audit's own settings, and leaves sound
shards unchanged. Files that `jobs.gc` is removing are skipped. Exit code 6 means that a file is damaged; for the others
see jobs/exit_codes.py.
"""

from dataclasses import dataclass

from concept_trak.config import absolute
from concept_trak.report.maintenance import verify_store
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.execute import ExecutorMapper, RunConfig, worker_settings
from jobs.exit_codes import DAMAGED


@dataclass(frozen=True)
class VerifyConfig:
    store: str = "results"
    audit: str = ""
    """The audit's name; empty means every audit of the store."""
    repair: bool = False


def verify(config: VerifyConfig, run: RunConfig = RunConfig()) -> int:
    """Print every problem, repair it with `repair=true`, and return 0 or 6."""
    store = Store(absolute(config.store))
    sound = verify_store(store, config.audit, config.repair, ExecutorMapper(run), worker_settings(run.cluster))
    return 0 if sound else DAMAGED


if __name__ == "__main__":
    main(verify, "verify", VerifyConfig, RunConfig)
