"""Audits named after the tick of a schedule, so that a tick is one audit however often, and by whom, it is begun."""

from datetime import datetime

# The words of cron, and what a tick of each is called; names sort in the order of time.
TICKS = {"@hourly": "%Y-%m-%dT%H", "@daily": "%Y-%m-%d", "@weekly": "%G-W%V", "@monthly": "%Y-%m"}


def named(audit: str, now: datetime) -> str:
    """`@weekly` as the tick that `now` (UTC) is in, 2026-W48; another name as it is.

    Raises:
        ValueError: an unknown word of this kind.
    """
    if not audit.startswith("@"):
        return audit
    if audit not in TICKS:
        raise ValueError(f"audit={audit!r} is no schedule; expected one of: {', '.join(TICKS)}, or a name")
    return now.strftime(TICKS[audit])
