"""Audits as jobs of a Ray cluster: the checks before the upload, the submission, and actions on submitted attempts."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from cluster import submission
from cluster.source import NEVER_SHIPPED
from cluster.upload import LARGE, measure_upload
from concept_trak import UserError
from concept_trak.audit.mapper import Stopped
from concept_trak.audit.resolve import tick
from concept_trak.audit.status import require_portable_name
from concept_trak.config import AuditConfig, absolute, plain_values
from concept_trak.store.manifest import Audit
from concept_trak.store.secrets import redacted, refuse_secrets
from concept_trak.store.store import Store
from jobs.audit import AuditRunConfig
from jobs.configure import CONF, LEFT_AT_HOME, configure_all
from jobs.execute import require_reachable
from jobs.exit_codes import INTERRUPTED, OUTPUT_CLOSED


def submit_audit(address: str, arguments: Sequence[str], python: str, env: Sequence[str]) -> tuple[str, str]:
    """Submit the next attempt at an audit.

    Args:
        address: of the dashboard of the cluster's head.
        arguments: those of `jobs.audit`.
        python: the interpreter on the cluster.
        env: names of variables that the job gets from this environment.

    Returns:
        (the audit's name, the submission id).

    Raises:
        UserError: as of `checked` and of `cluster.submission`; or a variable is not set.
    """
    audit, arguments = checked(arguments)
    if missing := [name for name in env if name not in os.environ]:
        raise UserError(f"env: {', '.join(missing)} not set here; export it, or take it out of env=[...]")
    jobs = submission.client(address)
    variables = {name: os.environ[name] for name in env}
    command = [python, "-m", "jobs.audit", *arguments]
    if (upload := measure_upload(CONF.parent, [*LEFT_AT_HOME, *NEVER_SHIPPED])).bytes > LARGE:
        show(f"upload     {upload}. Name in .rayignore what no node needs\n")
    name = submission.submit(jobs, audit, command, str(CONF.parent), variables, LEFT_AT_HOME)
    show(f"submitted  {name} to {address}\n")
    return audit, name


def checked(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The audit's name, and its arguments as they are given to the cluster.

    Raises:
        UserError: the cluster would refuse the arguments, or they have a secret, which Ray would write into its logs.
    """
    chosen = any(argument.startswith(("cluster=", "cluster.kind=")) for argument in arguments)
    arguments = [*arguments, *([] if chosen else ["cluster=ray"])]
    config, run = configure_all((AuditConfig, AuditRunConfig), "config", arguments)
    if not config.audit:
        raise UserError("the submitted audit needs a name, which a next attempt resumes: -- audit=week-1 ...")
    audit = tick(config.audit, datetime.now(UTC))
    refuse_secrets(plain_values(config))
    require_reachable(config.complete(), run.cluster)
    Audit(Store(absolute(config.store)), audit)  # refuses a bad name
    require_portable_name(audit)
    return audit, [*(argument for argument in arguments if not argument.startswith("audit=")), f"audit={audit}"]


def follow_attempt(address: str, audit: str, name: str) -> int:
    """Print the log of the attempt `name` until it ends, and return its exit code.

    Raises:
        Stopped: the connection was lost (exit code 4), or this command was interrupted; the job goes on.
    """
    command = f"python -m jobs.submit address={redacted(address)} audit={audit}"
    try:
        return submission.follow(submission.client(address), name, show)
    except submission.ConnectionLost as error:
        raise Stopped(
            f"{error}. `{command} action=status` shows whether it does, `action=follow` follows it again", 4
        ) from None
    except (KeyboardInterrupt, BrokenPipeError) as error:
        reason, code = ("interrupted", INTERRUPTED)
        if isinstance(error, BrokenPipeError):
            reason, code = ("the reader of this output has closed it", OUTPUT_CLOSED)
        raise Stopped(
            f"{reason}; {name} goes on without this command. `{command} action=follow` follows it again, "
            "`action=stop` stops it",
            code,
        ) from None


def act_on_submitted(action: str, address: str, audit: str) -> int:
    """`follow`, `stop` or print the `logs` of the last attempt at an audit, or print the `status` of every attempt.

    Returns:
        The job's exit code if it was followed, else 0.

    Raises:
        UserError: the audit was never submitted there.
    """
    audit, jobs = tick(audit, datetime.now(UTC)), submission.client(address)
    attempts = submission.attempts(jobs, audit)
    if not attempts:
        raise UserError(f"{address} has no job of audit {audit!r}; expected audit= of one submitted there")
    match action:
        case "follow":
            return follow_attempt(address, audit, attempts[-1])
        case "stop":
            show(f"{attempts[-1]}: {'stopping' if jobs.stop_job(attempts[-1]) else 'has ended already'}\n")
        case "logs":
            show(jobs.get_job_logs(attempts[-1]))
        case _:
            for name in attempts:
                info = jobs.get_job_info(name)
                show(f"{name}: {info.status}, exit code {info.driver_exit_code}\n")
    return 0


def show(text: str) -> None:
    """Print without secrets."""
    print(redacted(text), end="", flush=True)
