"""The exit codes of the verbs.

0    done
2    a mistake of the user, described in one message
3    more samples were rejected than budget.rejects allows
4    machines or storage failed more often than the budget allows, Ray on this machine died, or the connection to a
     submitted job was lost
5    some work failed, or this project has a bug; the traceback is printed
6    a file in the store differs from its record (`jobs.verify`)
130  interrupted (Ctrl-C)
141  the reader of the output closed it, as `head` does
143  terminated by another process (SIGTERM), such as a scheduler or a shutdown

After 2 to 5 and 130 to 143 the same command resumes. A submitted job continues without the command that follows it.
"""

import contextlib
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from cluster.executor import Failure, InfrastructureExhausted, WorkerFailed
from cluster.worker import classify
from concept_trak.audit.mapper import Stopped
from concept_trak.data.text import escaped
from concept_trak.store.secrets import redacted, without_secrets

MENDABLE, BUG, DAMAGED = 2, 5, 6
MOST_CHARACTERS = 20_000
NEWLINES = "\n\t"  # control characters that messages may have
INTERRUPTED, OUTPUT_CLOSED, TERMINATED = 130, 141, 143  # as a shell reports SIGINT, SIGPIPE and SIGTERM


def ended(verb: Callable[[], int]) -> int:
    """The exit code of a verb, whatever it raises; the message goes to stderr."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = verb()
        sys.stdout.flush()  # an error of Python's own flush at exit would be reported with a traceback
        return code
    except (Stopped, WorkerFailed, InfrastructureExhausted) as error:
        return _error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _error("interrupted; what is done stays done. Run the same command again.", INTERRUPTED)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        return _error("ended from outside; what is done stays done. Run the same command again.", TERMINATED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return _error("the reader of this output has closed it, so this command has stopped", OUTPUT_CLOSED)
        match classify(error):
            case Failure.INPUT:
                return _error(str(error), MENDABLE)
            case Failure.INFRASTRUCTURE:
                # The storage client has already retried many times, so the user decides when to try again.
                text = without_secrets(error) or type(error).__name__
                return _error(
                    f"{text}; what is done stays done. Run the same command again.", InfrastructureExhausted.exit_code
                )
        print(escaped(redacted(traceback.format_exc()), NEWLINES), end="", file=sys.stderr)
        return BUG


def _terminate(number: int, _: object) -> None:
    sys.exit(number)


def _error(message: str, code: int) -> int:
    if code == OUTPUT_CLOSED:
        _discard_output()
    message = message if len(message) <= MOST_CHARACTERS else f"{message[:MOST_CHARACTERS]}..."
    with contextlib.suppress(BrokenPipeError):  # of `2>&1 | head`
        print(f"error: {escaped(redacted(message), NEWLINES)}", file=sys.stderr)
    return code


def _output_is_closed() -> bool:
    """Whether the broken pipe is this process's output and not a connection to storage."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except io.UnsupportedOperation:  # stdout is not a file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_output() -> None:
    """Discard the rest of stdout's buffer: it has no reader, and Python would fail to write it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
