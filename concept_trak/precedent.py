"""Which earlier audit another is compared with, and what both were asked."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from typing import Any

import yaml

from concept_trak.store.manifest import Audit, manifest

UNASKED = ("truth",)  # grades the answer and is no part of the question


def common(before: Audit, after: str, new: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(concept, method) that both asked alike, in the later audit's order; ValueError if there is none.

    `after` is called so, and `new` are its settings, as `audit.yaml` has them or is about to.
    """
    old = settings(before)
    questions = [
        {c["name"]: {k: v for k, v in c.items() if k not in UNASKED} for c in s["concepts"]} for s in (old, new)
    ]
    concepts = [name for name, asked in questions[1].items() if questions[0].get(name) == asked]
    methods = [method for method in new["methods"] if method in old["methods"]]
    if not concepts or not methods:
        sides = (f"{name}: {', '.join(s['methods'])} about {', '.join(q)}"
                 for name, s, q in zip((before.id, after), (old, new), questions, strict=True))  # fmt: skip
        raise ValueError(
            f"the audits have no question in common ({'; '.join(sides)}); expected a method, and a concept of the same "
            "name, prompts, samples and seed, in both"
        )
    return list(product(concepts, methods))


def settings(audit: Audit) -> dict[str, Any]:
    """What an audit was begun with."""
    return yaml.safe_load(audit.store.read(audit.name("audit.yaml")))


def require_comparable(audit: Audit, since: str, new: Mapping[str, Any]) -> None:
    """Before an audit with the settings `new` begins: that the one it is to be compared with can be.

    Raises:
        ValueError: the one that `since` names is itself, missing, unfinished, or has no question in common.
    """
    if since in ("", "latest"):
        return
    if since == audit.id:
        raise ValueError(f"since={since} is this audit itself; expected an earlier one, or latest")
    finished(Audit(audit.store, since))
    common(Audit(audit.store, since), audit.id, new)


def earlier(audit: Audit, since: str) -> Audit | None:
    """The audit that another is compared with: the one named, or for `latest` the newest that is finished and has a
    question in common; None if there is none, or none is asked for."""
    if since not in ("", "latest"):
        return Audit(audit.store, since)
    others = {name.split("/")[1] for name in audit.store.names("audits") if name.endswith("/manifest.json")} - {
        audit.id
    }
    done = [(told["finished"], name) for name in others if since and (told := manifest(Audit(audit.store, name)))]
    for _, name in sorted(done, reverse=True):
        with suppress(ValueError, FileNotFoundError):  # nothing in common; or gc is removing it
            common(Audit(audit.store, name), audit.id, settings(audit))
            return Audit(audit.store, name)
    return None


def finished(audit: Audit) -> dict[str, Any]:
    """The manifest of an audit; ValueError if there is none."""
    done = manifest(audit)
    if done is None and not audit.store.names(f"audits/{audit.id}"):
        raise ValueError(f"{audit.store.uri} has no audit {audit.id!r}; `python -m jobs.status` lists those there are")
    if done is None:
        raise ValueError(f"audit {audit.id} is not finished; run its command again, then compare")
    return done
