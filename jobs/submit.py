"""An audit as a job of a Ray cluster: `python -m jobs.submit address=http://head:8265 -- audit=week-1 [key=value ...]`.

What follows `--` are the arguments of `jobs.audit`; `cluster=ray` is added. The submission id is `{audit}-{attempt}`;
the log is followed and the job's exit code is this one's. `audit=@weekly` names the audit after this week, so that a
schedule gives one command again and again. `action=follow|stop|logs|status audit=week-1` speak of the last
attempt, status of all. A cluster with a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH).
"""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from concept_trak.audit.mapper import Stopped
from concept_trak.audit.prepare import tick
from concept_trak.config import AuditConfig, absolute
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.audit import AuditRunConfig
from jobs.configure import CONF, LEFT_AT_HOME, configure_all, main


@dataclass(frozen=True)
class SubmitConfig:
    address: str = "http://127.0.0.1:8265"
    action: Literal["submit", "follow", "status", "stop", "logs"] = "submit"
    audit: str = ""
    """For all actions but submit; an audit that is submitted is named after `--`."""
    env: tuple[str, ...] = ()
    """Names of this environment's variables that the job gets; their values are never written down here."""
    follow: bool = True
    python: str = "python"
    """The interpreter on the cluster."""


def submit(config: SubmitConfig, arguments: Sequence[str] = ()) -> int:
    """Do the action; the exit code is the job's for submit and follow, else 0; 4 if the connection is lost.

    Raises:
        ValueError: the audit's arguments are wrong, a variable of `env` is not set, nobody answers at the address, the
            token is missing or wrong, or the audit was never submitted there.
    """
    return _start(config, arguments) if config.action == "submit" else _tell(config)


def _start(config: SubmitConfig, arguments: Sequence[str]) -> int:
    from cluster import submission

    asked, _ = configure_all((AuditConfig, AuditRunConfig), "config", arguments)
    if not asked.audit:
        raise ValueError("the submitted audit needs a name, which a next attempt resumes: -- audit=week-1 ...")
    audit = tick(asked.audit, datetime.now(UTC))
    Audit(Store(absolute(asked.store)), audit)  # refuses a bad name
    if missing := [name for name in config.env if name not in os.environ]:
        raise ValueError(f"env: {', '.join(missing)} not set here; export it, or take it out of env=[...]")
    chosen = [] if any(a.startswith("cluster=") for a in arguments) else ["cluster=ray"]
    said = [a for a in arguments if not a.startswith("audit=")]
    entry = shlex.join([config.python, "-m", "jobs.audit", *said, f"audit={audit}", *chosen])
    jobs = submission.client(config.address)
    variables = {name: os.environ[name] for name in config.env}
    name = submission.submit(jobs, audit, entry, str(CONF.parent), variables, LEFT_AT_HOME)
    print(f"submitted  {name} to {config.address}", flush=True)
    return _follow(config, audit, name) if config.follow else 0


def _follow(config: SubmitConfig, audit: str, name: str) -> int:
    from cluster import submission

    try:
        return submission.follow(submission.client(config.address), name, _print)
    except submission.ConnectionLost as error:
        here = f"python -m jobs.submit address={config.address} audit={audit}"
        raise Stopped(
            f"{error}. `{here} action=status` says whether it does, `action=follow` follows it again", 4
        ) from None


def _tell(config: SubmitConfig) -> int:
    from cluster import submission

    audit = tick(config.audit, datetime.now(UTC))
    jobs = submission.client(config.address)
    known = submission.attempts(jobs, audit)
    if not known:
        raise ValueError(f"{config.address} has no job of audit {audit!r}; expected audit= of one submitted there")
    match config.action:
        case "follow":
            return _follow(config, audit, known[-1])
        case "stop":
            print(f"{known[-1]}: {'stopping' if jobs.stop_job(known[-1]) else 'has ended already'}")
        case "logs":
            _print(jobs.get_job_logs(known[-1]))
        case _:
            for name in known:
                info = jobs.get_job_info(name)
                print(f"{name}: {info.status}, exit code {info.driver_exit_code}")
    return 0


def _print(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    rest, sys.argv = sys.argv[cut + 1 :], sys.argv[:cut]

    def verb(config: SubmitConfig) -> int:
        return submit(config, rest)

    main(verb, "submit", SubmitConfig)
