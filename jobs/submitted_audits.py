"""Audits as jobs of a Ray cluster: the checks before the upload, the submission, and actions on submitted attempts."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cluster import submission
from cluster.source import NEVER_SHIPPED
from cluster.upload import LARGE, measure_upload, not_uploaded
from concept_trak import UserError
from concept_trak.audit.mapper import Stopped
from concept_trak.audit.resolve import tick
from concept_trak.audit.status import require_portable_name
from concept_trak.config import AuditConfig, absolute, plain_values
from concept_trak.store.manifest import Audit
from concept_trak.store.secrets import redacted, refuse_secrets
from concept_trak.store.store import Store
from jobs.audit import AuditRunConfig
from jobs.configure import CONF, NOT_SHIPPED, configuration_files, configure_all
from jobs.execute import require_reachable
from jobs.exit_codes import INTERRUPTED, OUTPUT_CLOSED

EXCLUDES = (*NOT_SHIPPED, *NEVER_SHIPPED)


def submit_audit(address: str, arguments: Sequence[str], python: str, env: Sequence[str]) -> tuple[str, str]:
    """Submit the next attempt at an audit.

    Args:
        address: the address of the dashboard of the cluster's head.
        arguments: those of `jobs.audit`.
        python: the interpreter on the cluster.
        env: names of variables that the job gets from this environment.

    Returns:
        (the audit's name, the submission id).

    Raises:
        UserError: the arguments are refused (see `checked`), the cluster refuses the job (see `cluster.submission`), or
            a variable is not set.
    """
    audit, arguments = checked(arguments)
    if missing := [name for name in env if name not in os.environ]:
        raise UserError(f"env: {', '.join(missing)} not set here; export it, or remove it from env=[...]")
    jobs = submission.client(address)
    variables = {name: os.environ[name] for name in env}
    command = [python, "-m", "jobs.audit", *arguments]
    if (upload := measure_upload(CONF.parent, EXCLUDES)).bytes > LARGE:
        show(f"upload     {upload}. List files that no node needs in .rayignore\n")
    name = submission.submit(jobs, audit, command, str(CONF.parent), variables, NOT_SHIPPED)
    show(f"submitted  {name} to {address}\n")
    return audit, name


def checked(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The audit's name, and the arguments for the cluster.

    Raises:
        UserError: the arguments are wrong, or they contain a secret, which Ray would write to its logs.
    """
    chosen = any(argument.startswith(("cluster=", "cluster.kind=")) for argument in arguments)
    arguments = [*arguments, *([] if chosen else ["cluster=ray"])]
    config, run = configure_all((AuditConfig, AuditRunConfig), "config", arguments)
    if not config.audit:
        raise UserError("a submitted audit needs a name, so that the next attempt can resume it: -- audit=week-1 ...")
    audit = tick(config.audit, datetime.now(UTC))
    refuse_secrets(plain_values(config))
    require_reachable(config.complete(), run.cluster)
    Audit(Store(absolute(config.store)), audit)  # refuses a bad name
    require_portable_name(audit)
    require_uploaded(config, configuration_files("config", arguments))
    return audit, [*(argument for argument in arguments if not argument.startswith("audit=")), f"audit={audit}"]


def require_uploaded(config: AuditConfig, files: Sequence[str]) -> None:
    """Check that the job finds what it reads from the checkout: `files`, and whatever has a relative path."""
    m, concepts = config.model, config.concepts
    places = [config.data.uri, m.path, m.weights, m.lora, *m.embeddings]
    places += [path for c in concepts for path in (c.image, c.conditioning_image, c.classifier, *c.examples)]
    relative = [path for path in places if path and "://" not in path and not Path(path).is_absolute()]
    if lacking := not_uploaded(CONF.parent, EXCLUDES, [*files, *relative]):
        names = f"{', '.join(lacking[:3])}{', ...' * (len(lacking) > 3)}"
        raise UserError(
            f"{names} would not reach the cluster, because .gitignore or .rayignore names it, or it is outside the "
            f"checkout or in a folder that is never sent ({', '.join(NOT_SHIPPED)}): move it, or add a line such as "
            f"!{lacking[0]} to the file that names it"
        )


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
            f"{error}. `{command} action=status` prints its status, `action=follow` follows it again", 4
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
    """Follow or stop the last attempt at an audit, print its log, or print the status of every attempt.

    Args:
        action: `follow`, `stop`, `logs` or `status`.
        address: the address of the dashboard of the cluster's head.
        audit: the audit's name.

    Returns:
        The job's exit code if the job was followed, else 0.

    Raises:
        UserError: the audit was never submitted there.
    """
    audit, jobs = tick(audit, datetime.now(UTC)), submission.client(address)
    attempts = submission.attempts(jobs, audit)
    if not attempts:
        raise UserError(f"{address} has no job of audit {audit!r}; expected an audit that was submitted there")
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
