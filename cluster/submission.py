"""A command as a job of a standing Ray cluster: Ray's Jobs API, and its refusals as messages."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import cluster.on_ray  # noqa: F401  sets what Ray reads when it is imported
from cluster.executor import InfrastructureExhausted, UserError

TOKEN = (
    "the cluster asks for a token and this one is missing or wrong: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or "
    "RAY_AUTH_TOKEN_PATH, a file that holds it) to the cluster's own"
)
POLL = 0.5
LOST = (aiohttp.ClientError, OSError, RuntimeError)  # what Ray's client raises when nobody answers any more


class Lost(InfrastructureExhausted):
    """Nobody answers any more while a job is followed; the job itself may go on."""


def client(address: str) -> JobSubmissionClient:
    """The Jobs API at `address` (http://head:8265).

    Raises:
        UserError: nobody answers there, or the token is missing or wrong.
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
        UserError: Ray refuses it, as when another submission took the same attempt at the same moment.
    """
    standing = attempts(jobs, audit)
    number = 1 + max((int(name.rpartition("-")[2]) for name in standing), default=0)
    runtime: dict[str, Any] = {"working_dir": working_dir, "env_vars": dict(env_vars), "excludes": list(excludes)}
    name, metadata = f"{audit}-{number}", {"audit": audit, "attempt": str(number)}
    try:
        return jobs.submit_job(entrypoint=entrypoint, submission_id=name, metadata=metadata, runtime_env=runtime)
    except RuntimeError as error:
        raise UserError(
            f"the cluster refused {name}: {error}. If another submission took this attempt just now, give the same "
            "command again for the next one"
        ) from None


def follow(jobs: JobSubmissionClient, name: str, line: Callable[[str], None]) -> int:
    """Hand on the job's log, from its beginning until the job ends; its exit code.

    Raises:
        Lost: the connection broke. What `line` raises is its own.
    """
    asyncio.run(_tail(jobs, name, line))
    try:
        while not jobs.get_job_status(name).is_terminal():
            time.sleep(POLL)
        return exit_code(jobs, name)
    except LOST as error:
        raise _lost(name, error) from None


def exit_code(jobs: JobSubmissionClient, name: str) -> int:
    """What the job ended with; 4, as for machines that failed, if it was stopped or died without a code."""
    info = jobs.get_job_info(name)
    if info.driver_exit_code is not None and info.driver_exit_code >= 0:
        return info.driver_exit_code
    return 0 if str(info.status) == "SUCCEEDED" else 4


async def _tail(jobs: JobSubmissionClient, name: str, line: Callable[[str], None]) -> None:
    async for text in _told(jobs, name):
        line(text)


async def _told(jobs: JobSubmissionClient, name: str) -> AsyncIterator[str]:
    """The log as it comes. Apart from its reader, so that an error of the reader's is not taken for the network's."""
    coming = jobs.tail_job_logs(name)
    while True:
        try:
            text = await anext(coming)
        except StopAsyncIteration:
            return
        except LOST as error:
            raise _lost(name, error) from None
        yield text


def _lost(name: str, error: Exception) -> Lost:
    why = (str(error) or type(error).__name__).partition("\n")[0]
    return Lost(f"the connection to the cluster was lost while {name} was followed ({why}); the job may well go on")


def _explained(error: Exception, address: str) -> UserError:
    words = str(error)
    if isinstance(error, AuthenticationError) or "token" in words.lower():
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return UserError(f"{address}: {TOKEN}. RAY_AUTH_MODE here is {mode}")
    why = words.partition("\n")[0]
    return UserError(f"{address}: {why} Expected the address of a Ray head's dashboard, e.g. http://head:8265")
