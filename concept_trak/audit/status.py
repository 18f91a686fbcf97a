import json
import time
import unicodedata
from typing import Any

from concept_trak import UserError
from concept_trak.store.manifest import Audit, given_up, read_manifest
from concept_trak.store.store import Store

LONGEST_NAME = 100
"""Bytes of an audit's name. Names of files are at most 255, and a page of differences is named after an audit."""
RESERVED = frozenset(
    ["latest", "index", "con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)
"""Not for an audit, in any case and with any ending: what `since` means, pages of the store, devices of Windows."""


def audits_of(store: Store) -> list[str]:
    """The audits of a store, by name; other folders are ignored.

    Raises:
        UserError: an audit is in a folder whose name no audit can have, as a copy by hand may be.
    """
    folders = [name.rstrip("/") for name in store.children("audits") if name.endswith("/")]
    problems = {name: _problem(store, name) for name in folders}
    begun = ("audit.yaml", "plan.parquet", "manifest.json")
    refused = (name for name, problem in problems.items() if problem)
    if wrong := next((name for name in refused if set(begun).intersection(store.children(f"audits/{name}"))), ""):
        raise UserError(f"{store.uri}/audits/{wrong} holds an audit: {problems[wrong]} Rename the folder, or move it.")
    return [name for name, problem in problems.items() if not problem]


def _problem(store: Store, name: str) -> str:
    """Why no audit can be called so; empty where one can."""
    try:
        Audit(store, name)
    except UserError as error:
        return str(error)
    return ""


def require_portable_name(name: str) -> None:
    """Check the name of a new audit, which becomes a folder of any file system and a part of addresses.

    Raises:
        UserError: it is too long, reserved, or ends with a dot.
    """
    if (size := len(name.encode())) > LONGEST_NAME:
        raise UserError(f"audit={name[:40]}...: the name has {size} bytes; expected at most {LONGEST_NAME}")
    if name.partition(".")[0].casefold() in RESERVED or name.endswith("."):
        raise UserError(f"audit={name!r}: the name is reserved on some systems, or here; choose another, e.g. week-1")


def require_new_name(audit: Audit) -> None:
    """Check the name of an audit that is not in the store yet.

    Raises:
        UserError: as `require_portable_name`; or an audit of the same name but for case is there, which some file
            systems cannot keep apart.
    """
    names = audits_of(audit.store)
    if audit.id in names:
        return
    require_portable_name(audit.id)
    if twin := next((name for name in names if _folded(name) == _folded(audit.id)), ""):
        raise UserError(
            f"audit={audit.id!r}: there is an audit {twin!r}, and some file systems cannot keep the two apart; resume "
            "that one, or choose another name"
        )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def describe_status(audit: Audit) -> list[str]:
    """The lines about one audit: its results if it is finished, else its last reported progress."""
    if given_up(audit):
        return [f"{audit.id}: being removed by jobs.gc; if that was killed, the next `jobs.gc delete=true` finishes it"]
    done = read_manifest(audit)
    if done is not None:
        rows, rejected = (sum(part[key] for part in done["parts"]) for key in ("rows", "rejected"))
        parts = f"{len(done['parts'])} parts, {rows} features, {rejected} rejects"
        return [f"{audit.id}: finished {done['finished']}, {parts}"]
    seen = _last_seen(audit)
    if seen is None and audit.store.size(audit.name("audit.yaml")) is not None:
        return [f"{audit.id}: begun, nothing computed yet; the same command resumes it"]
    if seen is None:
        names = ", ".join(audits_of(audit.store)) or "none"
        raise UserError(f"{audit.store.uri} has no audit {audit.id!r}; it has: {names}")
    ago = max(0.0, time.time() - seen["time"])
    lines = [f"{audit.id}: not finished, last seen in {seen['stage']} {ago:.0f} s ago; the same command resumes it"]
    if silent := ago > max(SILENCE, WORDS * seen["interval"]):
        lines.append(
            f"  no word for {ago:.0f} s from a driver that speaks every {seen['interval']:g} s: it is dead, or busy in "
            "one item of cluster=serial, or between two stages"
        )
    running = f", {seen['running']} {'were ' if silent else ''}running"
    now = seen["stage"]
    return [*lines, *(f"  {stage:<10} {_counted(s, running * (stage == now))}" for stage, s in seen["stages"].items())]


def _counted(s: dict[str, Any], running: str) -> str:
    """One stage of the last reported progress: done, running, failed, rejected, samples, rate and time left."""
    running = running if s["done"] < s["of"] else ""
    samples = f", {s['samples']} of {s['samples_of']} samples" if running and s.get("samples_of") else ""
    rate = f", {s['samples_per_second']:.1f} samples/s" if s["samples"] else ""
    left = f", {s['seconds_left']:.0f} s left" if s["seconds_left"] else ""
    troubles = "".join(f", {s[what]} {what}" for what in ("failed", "rejected", "retries") if s[what])
    return f"{s['done'] - s['failed']} of {s['of']} done{running}{troubles}{samples}{rate}{left}"


def _last_seen(audit: Audit) -> dict[str, Any] | None:
    """The content of a run's `progress.json`; None if it is missing or cannot be read."""
    try:
        seen = json.loads(audit.store.read(audit.name("progress.json")))
        return seen if seen.keys() >= SEEN else None
    except (FileNotFoundError, ValueError, AttributeError, RecursionError):
        return None


SEEN = {"stage", "stages", "running", "interval", "time"}


# Intervals without a word, and at least so many seconds, that tell a dead driver: clocks of two machines differ, and a
# write that storage refuses at first is tried again for a while.
WORDS, SILENCE = 3, 30.0
