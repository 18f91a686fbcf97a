"""What lists of audits need of every finished one, kept in one file, so that each manifest is read once.

`audits/index.json` is a hint: an entry counts only while the manifest has the size and the time of writing that it had.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from concept_trak.store.identity import FeatureSet, encode_json
from concept_trak.store.manifest import Audit, read_manifest, read_settings
from concept_trak.store.records import READERS
from concept_trak.store.store import Store

SUMMARIES = "audits/index.json"


@dataclass(frozen=True)
class AuditSummary:
    """A finished audit in short.

    Attributes:
        audit: its name.
        written: size and time of writing of its manifest.
        finished: when it was finished.
        report: whether it has a page.
        samples: those with a feature, of its first method.
        concepts, methods: their names; empty where its settings cannot be read.
    """

    audit: str
    written: tuple[int, float]
    finished: str
    report: bool
    samples: int
    concepts: tuple[str, ...]
    methods: tuple[str, ...]


def summarize_audits(store: Store, names: Iterable[str]) -> list[AuditSummary]:
    """The finished ones among the audits of these names.

    Raises:
        Damaged: a manifest cannot be read.
    """
    earlier = read_summaries(store)
    with ThreadPoolExecutor(READERS) as readers:
        summaries = readers.map(lambda name: summarize_audit(Audit(store, name), earlier), names)
        return [summary for summary in summaries if summary is not None]


def summarize_audit(audit: Audit, earlier: Mapping[str, AuditSummary]) -> AuditSummary | None:
    """The summary of an audit, from `earlier` if that still holds; None while the audit is unfinished.

    Raises:
        Damaged: the manifest cannot be read.
    """
    name = audit.name("manifest.json")
    written = audit.store.stat(name)
    if written is None:
        return None
    if audit.id in earlier and earlier[audit.id].written == written:
        return earlier[audit.id]
    manifest = read_manifest(audit)
    return None if manifest is None else _summarized(audit, manifest, written)


def _summarized(audit: Audit, manifest: Mapping[str, Any], written: tuple[int, float]) -> AuditSummary:
    samples, concepts, methods = 0, (), ()
    try:
        settings = read_settings(audit)
        concepts = tuple(concept["name"] for concept in settings["concepts"])
        methods = tuple(settings["methods"])
        features = FeatureSet(manifest["settings"]["fingerprints"][methods[0]])
        rows = {part["name"]: part["rows"] for part in manifest["parts"]}  # methods may share features: listed for each
        samples = sum(count for name, count in rows.items() if name.startswith(f"{features.parts}/"))
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # `jobs.verify` reports what is wrong with it
        concepts = methods = ()
    return AuditSummary(
        audit=audit.id,
        written=written,
        finished=manifest["finished"],
        report="report.html" in manifest["files"],
        samples=samples,
        concepts=concepts,
        methods=methods,
    )


def read_summaries(store: Store) -> dict[str, AuditSummary]:
    """The summaries that are kept, by the names of their audits; {} where there are none that can be read."""
    try:
        rows = json.loads(store.read(SUMMARIES))
        summaries = [_read_summary(row) for row in rows]
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return {summary.audit: summary for summary in summaries}


def _read_summary(row: Mapping[str, Any]) -> AuditSummary:
    (size, modified), concepts, methods = row["written"], tuple(row["concepts"]), tuple(row["methods"])
    if any(type(text) is not str for text in (row["audit"], row["finished"], *concepts, *methods)):
        raise TypeError("a name or a time is no text")
    return AuditSummary(
        audit=row["audit"],
        written=(int(size), float(modified)),
        finished=row["finished"],
        report=bool(row["report"]),
        samples=int(row["samples"]),
        concepts=concepts,
        methods=methods,
    )


def keep_summaries(store: Store, summaries: Iterable[AuditSummary]) -> None:
    """Replace the file, unless it has these already; summaries without settings are made again."""
    by_audit = {summary.audit: summary for summary in summaries if summary.methods}
    if by_audit != read_summaries(store):
        store.replace(SUMMARIES, encode_json([asdict(summary) for _, summary in sorted(by_audit.items())]))
