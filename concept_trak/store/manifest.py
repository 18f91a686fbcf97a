"""The files of one audit: its configuration and plan first, its manifest last. Only the driver writes here.

Everything but the hints (progress.json, latest.json) is put-if-absent, so two drivers on one audit leave one set of
files, and a reader who starts from the manifest sees only finished ones. Names are below `audits/<audit>/`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import yaml

from concept_trak import UserError
from concept_trak.store.identity import FeatureSet, as_json, differences, encode_json
from concept_trak.store.part import Damaged
from concept_trak.store.records import READERS, Record
from concept_trak.store.secrets import refuse_secrets
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet, to_parquet

PLAN = pa.schema(
    {"shard": pa.string(), "source": pa.string(), "version": pa.string(), "first_row": pa.int64(), "rows": pa.int64()}
)
LATEST = "audits/latest.json"
GIVEN_UP = "given_up.json"  # stands in an audit while gc removes it


class Audit:
    """One audit on a store: the folder audits/<id>/."""

    def __init__(self, store: Store, audit_id: str):
        if not re.fullmatch(r"\w[\w.-]*", audit_id) or audit_id in ("latest.json", "index.html"):
            raise UserError(f"audit={audit_id!r}: expected letters, digits, '.', '_' or '-', e.g. audit=pikachu-2.")
        self.store, self.id = store, audit_id

    def name(self, relative: str) -> str:
        """The name of a file of this audit, relative to the store."""
        return f"audits/{self.id}/{relative}"


def begin_audit(audit: Audit, config: Mapping[str, Any], plan: pa.Table | Sequence[Mapping[str, Any]]) -> None:
    """Create audit.yaml (the whole resolved configuration), then plan.parquet; or check that they stand as given.

    A plan has the columns of `PLAN`, one row per shard, in the order the shards are computed.

    Raises:
        UserError: the audit was begun with other settings or another plan, or the configuration carries credentials.
    """
    refuse_secrets(config)
    settings = as_json(config, "config")
    if not write_bytes(audit, "audit.yaml", yaml.safe_dump(settings).encode()):
        _require_same_settings(audit, settings)
    ours = plan if isinstance(plan, pa.Table) else pa.Table.from_pylist([dict(row) for row in plan], PLAN)
    if not write_table(audit, "plan.parquet", ours):
        _require_same_plan(audit, ours)
    audit.store.delete(audit.name(GIVEN_UP))  # whoever begins it again wants it


def given_up(audit: Audit) -> bool:
    """Whether gc is removing it, or was when it was killed."""
    return audit.store.size(audit.name(GIVEN_UP)) is not None


def read_settings(audit: Audit) -> dict[str, Any]:
    """The settings that an audit was begun with, and the fingerprints of its features.

    Raises:
        FileNotFoundError: the audit has no audit.yaml.
        Damaged: the file cannot be read; the message names it.
    """
    name = audit.name("audit.yaml")
    data = audit.store.read(name)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data)):  # they may grow without end
            raise yaml.YAMLError("it has aliases")
        settings = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"{audit.store.uri}/{name} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(settings, dict):
        raise Damaged(f"{audit.store.uri}/{name} is damaged: it holds {type(settings).__name__}, not a mapping")
    return settings


def read_plan(audit: Audit) -> list[dict[str, Any]]:
    """The shards of an audit, in plan order: shard, source, version, first_row, rows.

    Raises:
        FileNotFoundError: the audit has no plan.parquet.
        Damaged: the file cannot be read; the message names it.
    """
    name = audit.name("plan.parquet")
    data = audit.store.read(name)
    try:
        return read_parquet(data).cast(PLAN).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Damaged(f"{audit.store.uri}/{name} is damaged: {error}") from error


def write_table(audit: Audit, relative: str, table: pa.Table) -> bool:
    """Put a table as Parquet if absent; False if other bytes stand there, which then hold."""
    return write_bytes(audit, relative, to_parquet(table))


def write_json(audit: Audit, relative: str, obj: Any) -> bool:
    """Put JSON if absent; False if other bytes stand there, which then hold."""
    return write_bytes(audit, relative, encode_json(obj))


def write_bytes(audit: Audit, relative: str, data: bytes) -> bool:
    """Put a file if absent; False if other bytes stand there (another driver's), which then hold."""
    return audit.store.create(audit.name(relative), data)


def read_table(audit: Audit, relative: str) -> pa.Table:
    """A Parquet file of the audit, page checksums verified."""
    return read_parquet(audit.store.read(audit.name(relative)))


def write_progress(audit: Audit, obj: Any) -> None:
    """Replace progress.json, a hint for people who watch."""
    audit.store.replace(audit.name("progress.json"), encode_json(obj))


def finish_audit(
    audit: Audit, files: Sequence[str], parts: Sequence[Record], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Write manifest.json last, then the hint audits/latest.json; returns the manifest that stands.

    `files` are names relative to the audit; size and sha256 are taken from what stands on storage, not from memory.
    `settings` are what a reader needs to name the features: at least the fingerprint.

    Raises:
        UserError: a listed file does not exist.
    """
    store = audit.store
    with ThreadPoolExecutor(READERS) as readers:
        digests = list(readers.map(lambda relative: _size_and_digest(audit, relative), sorted(files)))
    ours = {
        "audit": audit.id,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": as_json(settings),
        "files": dict(zip(sorted(files), digests, strict=True)),
        "parts": [_part_entry(record) for record in parts],
    }
    write_json(audit, "manifest.json", ours)
    standing = read_manifest(audit)
    assert standing is not None, "a manifest that was created can be read"
    if recency(standing["finished"]) >= recency(_latest(store)):  # another driver may end one finished long ago
        store.replace(LATEST, encode_json({"audit": audit.id, "finished": standing["finished"]}))
    return standing


def _latest(store: Store) -> str:
    """When the audit that the hint names was finished; "" if there is none that can be read."""
    try:
        return str(json.loads(store.read(LATEST))["finished"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def recency(finished: str, now: datetime | None = None) -> tuple[bool, str]:
    """What audits are ordered by, from old to new. A time a day in the future is a wrong clock's, and the oldest."""
    limit = (now or datetime.now(UTC)) + timedelta(days=1)
    return finished <= limit.isoformat(timespec="seconds"), finished


def read_manifest(audit: Audit) -> dict[str, Any] | None:
    """What a finished audit consists of; None while it is unfinished. Raises Damaged, naming the file."""
    name = audit.name("manifest.json")
    try:
        data = audit.store.read(name)
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(data)
        _require_entries(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{audit.store.uri}/{name} is damaged: {type(error).__name__}: {error}") from error
    return manifest


def _require_entries(manifest: dict[str, Any]) -> None:
    """Raises TypeError, or KeyError, for a manifest that `finish_audit` cannot have written."""
    parts = manifest["parts"]
    texts = [manifest["finished"], *manifest["files"], *(part[key] for part in parts for key in ("name", "shard"))]
    entries = [*manifest["files"].values(), *parts]
    counts = [*(entry["size"] for entry in entries), *(part[key] for part in parts for key in ("rows", "rejected"))]
    if any(type(text) is not str or ".." in text.split("/") for text in (*texts, *(e["sha256"] for e in entries))):
        raise TypeError("a name or a digest is no text")
    if any(type(count) is not int for count in counts) or type(manifest["settings"]) is not dict:
        raise TypeError("a count or the settings are of another type")


def _require_same_settings(audit: Audit, settings: Mapping[str, Any]) -> None:
    if different := differences(settings, read_settings(audit)):
        raise UserError(
            f"audit {audit.id} was begun with other settings: {'; '.join(different)}. Resume with the same settings"
            " or choose another audit=."
        )


def _require_same_plan(audit: Audit, plan: pa.Table) -> None:
    """A plan is fixed for the life of its audit: what was scored must be what is listed."""
    ours, theirs = plan.to_pylist(), read_plan(audit)
    if ours == theirs:
        return
    here, there = ({(row["source"], row["version"]) for row in plan} for plan in (ours, theirs))
    entries = [
        *(f"{source} (version {version}) left" for source, version in sorted(there - here)),
        *(f"{source} (version {version}) is new" for source, version in sorted(here - there)),
    ]
    what = "; ".join(entries[:6]) + (f"; and {len(entries) - 6} more" if len(entries) > 6 else "")
    raise UserError(
        f"the data of audit {audit.id} changed since it began: {what or 'the same sources are cut into other shards'}."
        f" Expected the {len(theirs)} shards of {audit.name('plan.parquet')}: start a new audit (audit=…); features"
        " that are still valid are reused."
    )


def _size_and_digest(audit: Audit, relative: str) -> dict[str, Any]:
    try:
        data = audit.store.read(audit.name(relative))
    except FileNotFoundError as error:
        raise UserError(
            f"audit {audit.id} cannot be finished: {relative} does not exist. Expected every listed file; run the same"
            " command again to write it."
        ) from error
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _part_entry(record: Record) -> dict[str, Any]:
    return {
        "name": FeatureSet(record.fingerprint).part(record.shard),
        "shard": record.shard,
        "rows": record.rows,
        "rejected": record.rejected,
        "size": record.bytes,
        "sha256": record.sha256,
    }


def gram_file(method: str) -> str:
    return f"{method}/gram.safetensors"


def query_file(method: str, concept: str) -> str:
    return f"{method}/queries/{concept}.parquet"


def scores_file(method: str, shard: str) -> str:
    return f"{method}/scores/{shard}.parquet"


def sums_file(method: str, shard: str) -> str:
    """Sums over consecutive shards, named by the first."""
    return f"{method}/sums/{shard}.parquet"


def groups_file(method: str, kind: str) -> str:
    return f"{method}/by_{kind}.parquet"


def beside_report(name: str) -> str:
    """Concept pages, thumbnails, originals and the query's pictures, where the report is not one file."""
    return f"report/{name}"


def plain_column(concept: str) -> str:
    """The column of the plain inner product phi_q . phi_i, beside the damped one."""
    return f"{concept}~plain"


def finished_manifest(audit: Audit) -> dict[str, Any]:
    """The manifest of a finished audit.

    Raises:
        UserError: there is no such audit, it is not finished, or gc is removing it.
        Damaged: the manifest cannot be read.
    """
    manifest = read_manifest(audit)
    if manifest is not None:
        return manifest
    if not audit.store.names(f"audits/{audit.id}"):
        raise UserError(f"{audit.store.uri} has no audit {audit.id!r}; `python -m jobs.status` lists those there are")
    if given_up(audit):
        raise UserError(f"audit {audit.id} is being removed by jobs.gc; to have it again, run its command again")
    raise UserError(f"audit {audit.id} is not finished; run its command again: it goes on where it stopped")


def feature_sets(audit: Audit) -> dict[str, FeatureSet]:
    """By method, the features that an audit was begun with. Raises as `read_settings` does."""
    settings = read_settings(audit)
    if not isinstance(settings.get("fingerprints"), dict):
        raise Damaged(f"{audit.store.uri}/{audit.name('audit.yaml')} is damaged: it names no fingerprints")
    return {method: FeatureSet(str(fp)) for method, fp in settings["fingerprints"].items()}
