"""A command as a job of a standing Ray cluster: Ray's Jobs API, and its refusals as messages."""

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import cluster.on_ray  # noqa: F401  sets what Ray reads when it is imported

TOKEN = (
    "the cluster asks for a token and this one is missing or wrong: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or "
    "RAY_AUTH_TOKEN_PATH, a file that holds it) to the cluster's own"
)
POLL = 0.5


def client(address: str) -> JobSubmissionClient:
    """The Jobs API at `address` (http://head:8265).

    Raises:
        ValueError: nobody answers there, or the token is missing or wrong.
    """
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        raise _explained(error, address) from None


def attempts(jobs: JobSubmissionClient, audit: str) -> list[str]:
    """The submission ids `{audit}-{attempt}` of an audit, the first attempt first."""
    known = [job.submission_id or "" for job in jobs.list_jobs()]
    found = {int(match[1]): name for name in known if (match := re.fullmatch(rf"{re.escape(audit)}-(\d+)", name))}
    return [found[number] for number in sorted(found)]


def submit(
    jobs: JobSubmissionClient,
    audit: str,
    entrypoint: str,
    working_dir: str,
    env_vars: Mapping[str, str],
    excludes: Sequence[str],
) -> str:
    """Start the next attempt at an audit; returns its submission id.

    Raises:
        ValueError: Ray refuses it, as when another submission took the same attempt at the same moment.
    """
    standing = attempts(jobs, audit)
    number = 1 + max((int(name.rpartition("-")[2]) for name in standing), default=0)
    runtime: dict[str, Any] = {"working_dir": working_dir, "env_vars": dict(env_vars), "excludes": list(excludes)}
    name, metadata = f"{audit}-{number}", {"audit": audit, "attempt": str(number)}
    try:
        return jobs.submit_job(entrypoint=entrypoint, submission_id=name, metadata=metadata, runtime_env=runtime)
    except RuntimeError as error:
        raise ValueError(
            f"the cluster refused {name}: {error}. If another submission took this attempt just now, give the same "
            "command again for the next one"
        ) from None


def follow(jobs: JobSubmissionClient, name: str, line: Callable[[str], None]) -> int:
    """Hand on the job's log until it ends; its exit code."""
    asyncio.run(_tail(jobs, name, line))
    while not jobs.get_job_status(name).is_terminal():
        time.sleep(POLL)
    return exit_code(jobs, name)


def exit_code(jobs: JobSubmissionClient, name: str) -> int:
    """What the job ended with; 4, as for machines that failed, if it was stopped or died without a code."""
    info = jobs.get_job_info(name)
    if info.driver_exit_code is not None and info.driver_exit_code >= 0:
        return info.driver_exit_code
    return 0 if str(info.status) == "SUCCEEDED" else 4


async def _tail(jobs: JobSubmissionClient, name: str, line: Callable[[str], None]) -> None:
    async for text in jobs.tail_job_logs(name):
        line(text)


def _explained(error: Exception, address: str) -> ValueError:
    words = str(error)
    if isinstance(error, AuthenticationError) or "token" in words.lower():
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return ValueError(f"{address}: {TOKEN}. RAY_AUTH_MODE here is {mode}")
    why = words.partition("\n")[0]
    return ValueError(f"{address}: {why} Expected the address of a Ray head's dashboard, e.g. http://head:8265")
