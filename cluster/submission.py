"""Runs a command as a job of a Ray cluster, through Ray's Jobs API, whose errors become messages for the user."""

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import cluster.on_ray  # noqa: F401  sets variables that Ray reads when it is imported
from cluster.executor import InfrastructureExhausted, UserError
from cluster.sealed import seal
from cluster.source import NEVER_SHIPPED
from cluster.upload import measure_upload

TOKEN = (
    "the cluster asks for a token and this one is missing or wrong: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or "
    "RAY_AUTH_TOKEN_PATH, a file that holds it) to the cluster's own"
)
POLL = 0.5
TOO_LARGE = re.compile(r"\b413\b|exceeds the maximum size")
"""Matches Ray's message that the folder is too large."""
LOST = (aiohttp.ClientError, OSError, RuntimeError)  # the errors of Ray's client when the server no longer answers
# Without this, Ray prints a line for each upload and each closed socket, and one about .git and .venv.
LOGGERS = ("", "._private.runtime_env.working_dir", ".dashboard.modules.dashboard_sdk", ".dashboard.modules.job.sdk")
for _name in LOGGERS:
    logging.getLogger(f"ray{_name}").setLevel(logging.WARNING)
    logging.getLogger(f"ray{_name}").addFilter(lambda record: "is now ignored by default" not in record.getMessage())


class ConnectionLost(InfrastructureExhausted):
    """The connection to the cluster was lost while following a job; the job itself may go on."""


def client(address: str) -> JobSubmissionClient:
    """A client of the Jobs API at `address` (http://head:8265).

    Raises:
        UserError: no Ray head answers there, or the token is missing or wrong.
    """
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise _explained(error, address) from None


def attempts(jobs: JobSubmissionClient, audit: str) -> list[str]:
    """The submission ids of an audit, `{audit}-{attempt}`, in the order of attempts."""
    names = [job.submission_id or "" for job in jobs.list_jobs()]
    own = {int(match[1]): name for name in names if (match := re.fullmatch(rf"{re.escape(audit)}-(\d+)", name))}
    return [own[number] for number in sorted(own)]


def submit(
    jobs: JobSubmissionClient,
    audit: str,
    command: Sequence[str],
    working_dir: str,
    env_vars: Mapping[str, str],
    excludes: Sequence[str],
) -> str:
    """Start the next attempt at an audit.

    Args:
        jobs: the Jobs API.
        audit: its name.
        command: a Python interpreter of the cluster, and its arguments.
        working_dir: the folder that is shipped to the cluster. The command runs there.
        env_vars: variables of the command and of its workers. They travel encrypted (`cluster.sealed`).
        excludes: paths of the folder that are not shipped, in the syntax of .gitignore.

    Returns:
        The submission id.

    Raises:
        UserError: the folder is too large; there are variables and no token; or Ray refuses the job, for example
            because another submission took the same attempt at the same moment.
    """
    number = 1 + max((int(name.rpartition("-")[2]) for name in attempts(jobs, audit)), default=0)
    runtime: dict[str, Any] = {"working_dir": working_dir, "excludes": [*excludes, *NEVER_SHIPPED]}
    if env_vars:
        runtime["env_vars"] = seal(env_vars)
        command = [command[0], "-m", "cluster.sealed", *command]
    name, metadata = f"{audit}-{number}", {"audit": audit, "attempt": str(number)}
    try:
        return jobs.submit_job(
            entrypoint=shlex.join(command), submission_id=name, metadata=metadata, runtime_env=runtime
        )
    except (RuntimeError, ValueError) as error:
        raise _refusal(error, name, working_dir, runtime["excludes"]) from None


def _refusal(error: Exception, name: str, working_dir: str, excludes: Sequence[str]) -> UserError:
    """The message for a job that Ray refused, with the remedy."""
    if not TOO_LARGE.search(str(error)):
        return UserError(
            f"the cluster refused {name}: {error}. If another submission took this attempt just now, give the same "
            "command again for the next one"
        )
    upload = measure_upload(working_dir, [".git", ".venv", *excludes])
    file, size = max(upload.files.items(), key=lambda entry: entry[1], default=(working_dir, 0))
    return UserError(
        f"the cluster refused {name}: {working_dir} is too large to be sent. Its largest file is {file} "
        f"({size / 1e6:.0f} MB): move it out, or name it in .gitignore. It has {upload}"
    )


def follow(jobs: JobSubmissionClient, name: str, line: Callable[[str], None]) -> int:
    """Call `line` with each piece of a job's log until the job ends. Returns the exit code of the job.

    Raises:
        ConnectionLost: the connection broke.
        Exception: any error of `line`.
    """
    asyncio.run(_tail(jobs, name, line))
    try:
        while not jobs.get_job_status(name).is_terminal():
            time.sleep(POLL)
        return exit_code(jobs, name)
    except LOST as error:
        raise _lost(name, error) from None


def exit_code(jobs: JobSubmissionClient, name: str) -> int:
    """The exit code of a job. A job that was stopped or died without one gets 4, the code for failed machines."""
    info = jobs.get_job_info(name)
    if info.driver_exit_code is not None and info.driver_exit_code >= 0:
        return info.driver_exit_code
    return 0 if str(info.status) == "SUCCEEDED" else 4


async def _tail(jobs: JobSubmissionClient, name: str, line: Callable[[str], None]) -> None:
    async for text in _log(jobs, name):
        line(text)


async def _log(jobs: JobSubmissionClient, name: str) -> AsyncIterator[str]:
    """The log, piece by piece. It is a separate function, because it must not catch the errors of `line`."""
    pieces = jobs.tail_job_logs(name)
    while True:
        try:
            text = await anext(pieces)
        except StopAsyncIteration:
            return
        except LOST as error:
            raise _lost(name, error) from None
        yield text


def _lost(name: str, error: Exception) -> ConnectionLost:
    why = (str(error) or type(error).__name__).partition("\n")[0]
    return ConnectionLost(
        f"the connection to the cluster was lost while following {name} ({why}); the job may still be running"
    )


def _explained(error: Exception, address: str) -> UserError:
    text = str(error)
    if isinstance(error, AuthenticationError) or "token" in text.lower():
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return UserError(f"{address}: {TOKEN}. RAY_AUTH_MODE here is {mode}")
    why = text.partition("\n")[0]
    return UserError(f"{address}: {why} Expected the address of a Ray head's dashboard, e.g. http://head:8265")
