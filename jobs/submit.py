"""Run an audit as a job of a Ray cluster: `python -m jobs.submit address=http://head:8265 -- audit=week-1 [key=value]`.

The arguments after `--` are those of `jobs.audit`; `cluster=ray` is added. This machine checks them before the upload,
as far as it can. The submission id is `{audit}-{attempt}`. This command prints the job's log and ends with the job's
exit code. `audit=@weekly` names the audit after this week, so that a schedule can run the same command every time.
`action=follow|stop|logs|status audit=week-1` applies to the last attempt, or with `status` to all attempts. A cluster
with a token needs RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.configure import main


@dataclass(frozen=True)
class SubmitConfig:
    address: str = "http://127.0.0.1:8265"
    """Address of the dashboard of the cluster's head."""
    action: Literal["submit", "follow", "status", "stop", "logs"] = "submit"
    """submit a job; follow, stop or print the log of the last attempt; or print the status of every attempt."""
    audit: str = ""
    """The audit of an action other than submit. The arguments after `--` name the audit to submit."""
    env: tuple[str, ...] = ()
    """Names of variables that the job gets from this environment. Their values are sent encrypted with the token."""
    follow: bool = True
    """Whether to print the log of the submitted job until it ends."""
    python: str = "python"
    """The Python interpreter on the cluster."""


def submit(config: SubmitConfig, arguments: Sequence[str] = ()) -> int:
    """Do the action.

    Args:
        config: the action and the cluster.
        arguments: those of `jobs.audit`.

    Returns:
        The job's exit code if the job was followed, else 0.
    """
    from jobs import submitted_audits  # imports Ray, which --help does not need

    if config.action != "submit":
        return submitted_audits.act_on_submitted(config.action, config.address, config.audit)
    audit, name = submitted_audits.submit_audit(config.address, arguments, config.python, config.env)
    return submitted_audits.follow_attempt(config.address, audit, name) if config.follow else 0


if __name__ == "__main__":
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    rest, sys.argv = sys.argv[cut + 1 :], sys.argv[:cut]

    def verb(config: SubmitConfig) -> int:
        """Run an audit as a job of a Ray cluster."""
        return submit(config, rest)

    main(verb, "submit", SubmitConfig)
