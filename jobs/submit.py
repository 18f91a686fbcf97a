"""Run an audit as a job of a Ray cluster: `python -m jobs.submit address=http://head:8265 -- audit=week-1 [key=value]`.

The arguments after `--` are those of `jobs.audit`; `cluster=ray` is added. They are checked here as far as this machine
can, so that a mistake costs no upload. The submission id is `{audit}-{attempt}`. This command prints the job's log and
ends with the job's exit code. `audit=@weekly` names the audit after this week, so that a schedule can run the same
command every time. `action=follow|stop|logs|status audit=week-1` are about a submitted job: the last attempt, or with
`status` all of them. A cluster with a token needs RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from concept_trak import UserError
from concept_trak.audit.mapper import Stopped
from concept_trak.audit.prepare import tick
from concept_trak.audit.status import require_portable_name
from concept_trak.config import AuditConfig, absolute, plain_values
from concept_trak.store.manifest import Audit
from concept_trak.store.secrets import redacted, refuse_secrets
from concept_trak.store.store import Store
from jobs.audit import AuditRunConfig
from jobs.configure import CONF, LEFT_AT_HOME, configure_all, main
from jobs.execute import require_reachable
from jobs.exit_codes import INTERRUPTED, OUTPUT_CLOSED


@dataclass(frozen=True)
class SubmitConfig:
    address: str = "http://127.0.0.1:8265"
    """Address of the dashboard of the cluster's head."""
    action: Literal["submit", "follow", "status", "stop", "logs"] = "submit"
    """submit a job; follow, stop or print the log of the last attempt; or print the status of every attempt."""
    audit: str = ""
    """The audit of an action other than submit. The arguments after `--` name the audit to submit."""
    env: tuple[str, ...] = ()
    """Names of variables that the job gets from this environment. Their values travel encrypted by the token."""
    follow: bool = True
    """Whether to print the log of the submitted job until it ends."""
    python: str = "python"
    """The Python interpreter on the cluster."""


def submit(config: SubmitConfig, arguments: Sequence[str] = ()) -> int:
    """Do the action.

    Args:
        config: what to do, and where.
        arguments: those of `jobs.audit`, for a submission.

    Returns:
        The job's exit code if it was followed, else 0.

    Raises:
        UserError: the audit's arguments are wrong, a variable of `env` is not set, no Ray head answers at the address,
            the token is missing or wrong, or the audit was never submitted there.
        Stopped: the connection was lost (exit code 4), or this command was interrupted; the job goes on.
    """
    return _submit(config, arguments) if config.action == "submit" else _act(config)


def _submit(config: SubmitConfig, arguments: Sequence[str]) -> int:
    from cluster import submission

    audit, arguments = checked(arguments)
    if missing := [name for name in config.env if name not in os.environ]:
        raise UserError(f"env: {', '.join(missing)} not set here; export it, or take it out of env=[...]")
    jobs = submission.client(config.address)
    variables = {name: os.environ[name] for name in config.env}
    command = [config.python, "-m", "jobs.audit", *arguments]
    name = submission.submit(jobs, audit, command, str(CONF.parent), variables, LEFT_AT_HOME)
    _print(f"submitted  {name} to {config.address}\n")
    return _follow(config, audit, name) if config.follow else 0


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


def _follow(config: SubmitConfig, audit: str, name: str) -> int:
    from cluster import submission

    command = f"python -m jobs.submit address={redacted(config.address)} audit={audit}"
    try:
        return submission.follow(submission.client(config.address), name, _print)
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


def _act(config: SubmitConfig) -> int:
    from cluster import submission

    audit = tick(config.audit, datetime.now(UTC))
    jobs = submission.client(config.address)
    attempts = submission.attempts(jobs, audit)
    if not attempts:
        raise UserError(f"{config.address} has no job of audit {audit!r}; expected audit= of one submitted there")
    match config.action:
        case "follow":
            return _follow(config, audit, attempts[-1])
        case "stop":
            _print(f"{attempts[-1]}: {'stopping' if jobs.stop_job(attempts[-1]) else 'has ended already'}\n")
        case "logs":
            _print(jobs.get_job_logs(attempts[-1]))
        case _:
            for name in attempts:
                info = jobs.get_job_info(name)
                _print(f"{name}: {info.status}, exit code {info.driver_exit_code}\n")
    return 0


def _print(text: str) -> None:
    print(redacted(text), end="", flush=True)


if __name__ == "__main__":
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    rest, sys.argv = sys.argv[cut + 1 :], sys.argv[:cut]

    def verb(config: SubmitConfig) -> int:
        """Run an audit as a job of a Ray cluster."""
        return submit(config, rest)

    main(verb, "submit", SubmitConfig)
