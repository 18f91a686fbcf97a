"""How a verb ends.

0 done; 2 a mistake that the user can mend, in one message; 3 over budget.rejects; 4 machines or storage failed more
often than the budget allows; 5 some work failed, or a bug of ours, with its traceback. `jobs.verify` adds 6: a file in
the store is not as it was written. After 2 to 5 the same command goes on where it stopped.
"""

import sys
import traceback
from collections.abc import Callable

from cluster.executor import Failure, InfrastructureExhausted, WorkerFailed
from cluster.worker import classify
from concept_trak.audit.mapper import Stopped
from concept_trak.store.secrets import without_secrets

MENDABLE, BUG, DAMAGED = 2, 5, 6


def ended(verb: Callable[[], int]) -> int:
    """The exit code of a verb, whatever it raises; the message goes to stderr."""
    try:
        return verb()
    except (Stopped, WorkerFailed, InfrastructureExhausted) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        match classify(error):
            case Failure.INPUT:
                print(f"error: {error}", file=sys.stderr)
                return MENDABLE
            case Failure.INFRASTRUCTURE:
                # Its client has tried for long, and only this process waits: the user decides when to go on.
                words = without_secrets(error) or type(error).__name__
                print(f"error: {words}; what is done stays done. Run the same command again.", file=sys.stderr)
                return InfrastructureExhausted.exit_code
        traceback.print_exc()
        return BUG
