"""How a run ends early, and what it calls what failed."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cluster.executor import Failure, InfrastructureExhausted, Outcome, WorkerFailed
from cluster.worker import classify
from concept_trak.audit.featurize import Featuring
from concept_trak.audit.gram import Group
from concept_trak.audit.pipeline import Stopped
from concept_trak.audit.query_features import Question
from concept_trak.audit.score import Scoring
from concept_trak.evaluation.baselines import Rivalry
from concept_trak.evaluation.benchmark import Inquiry
from concept_trak.store.manifest import Audit, write_bytes
from concept_trak.store.secrets import without_secrets

LOG = logging.getLogger(__name__)


def ended(verb: Callable[[], int]) -> int:
    """The exit code of a verb; one that machines or storage end early says so in one message, and what to do."""
    try:
        return verb()
    except (Stopped, WorkerFailed, InfrastructureExhausted) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if classify(error) is not Failure.INFRASTRUCTURE:
            raise
        # Its client has tried for long; what waits here is this process alone, so the user decides when to go on.
        words = without_secrets(error) or type(error).__name__
        print(f"error: {words}; what is done stays done. Run the same command again.", file=sys.stderr)
        return InfrastructureExhausted.exit_code


def failure(stage: str, failed: Sequence[Outcome], total: int) -> Stopped:
    """What a stage ends with when items failed: what the user can mend in one message, else the first traceback."""
    for outcome in failed:
        if outcome.failure is Failure.INPUT:
            return Stopped(outcome.message, 2)
    return Stopped(
        f"{stage}: {len(failed)} of {total} failed, the others are done. Run the same command again to retry only what "
        f"failed. The first error:\n{failed[0].error}",
        5,
    )


def label(item: Any) -> str:
    """What a failed item is called in the name of its log."""
    match item:
        case Featuring(methods, shard):
            return f"{'-'.join(methods)}-{shard.name}"
        case Scoring(method, records):
            return f"{method}-{records[0].shard}"
        case Question(method, concept):
            return f"{method}-{concept.name}"
        case Group(method, name):
            return f"{method}-{name}"
        case Inquiry(_, concept):
            return concept.name
        case Rivalry(rival):
            return rival
        case _:
            return getattr(item, "method", "item")


def write_log(audit: Audit, stage: str, item: Any, error: str) -> None:
    """The traceback of a failed item, as a file that outlives the run; an earlier one of the same item stays."""
    number = len(audit.store.names(audit.name(f"failures/{stage}")))
    try:
        write_bytes(audit, f"failures/{stage}/{number:04d}-{label(item)}.log", error.encode())
    except OSError as failed:  # what made the item fail is said in the end, and matters more
        LOG.warning("the traceback of a failed item is not written down: %s", failed)
