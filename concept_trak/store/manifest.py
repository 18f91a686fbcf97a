"""The files of one audit: its configuration and plan first, its manifest last. Only the driver writes here.

Every file except the hints (progress.json, latest.json) is put-if-absent, so two drivers on one audit leave one set of
files. A reader that starts from the manifest reads only finished files. Names are below `audits/<audit>/`.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import yaml

from concept_trak import UserError
from concept_trak.store.audit_files import Audit, ListedFile, listed_file, write_bytes, write_json, write_table
from concept_trak.store.identity import FeatureSet, as_json, encode_json, setting_differences
from concept_trak.store.part import Damaged
from concept_trak.store.records import READERS, Record
from concept_trak.store.secrets import refuse_secrets
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet
from concept_trak.store.yaml_text import parse_yaml

PLAN = pa.schema(
    {"shard": pa.string(), "source": pa.string(), "version": pa.string(), "first_row": pa.int64(), "rows": pa.int64()}
)
LATEST = "audits/latest.json"
PROGRESS = "progress.json"
GIVEN_UP = "given_up.json"  # exists in an audit while gc removes it


def begin_audit(audit: Audit, config: Mapping[str, Any], plan: pa.Table | Sequence[Mapping[str, Any]]) -> None:
    """Create audit.yaml (the whole resolved configuration), then plan.parquet; existing ones must be equal.

    A plan has the columns of `PLAN` and one row per shard, in the order in which the shards are computed.

    Raises:
        UserError: the audit was begun with other settings or another plan, or the configuration carries credentials.
    """
    refuse_secrets(config)
    settings = as_json(config, "config")
    if not write_bytes(audit, "audit.yaml", yaml.safe_dump(settings).encode()):
        require_same_settings(audit, settings)
    ours = plan if isinstance(plan, pa.Table) else pa.Table.from_pylist([dict(row) for row in plan], PLAN)
    if not write_table(audit, "plan.parquet", ours):
        _require_same_plan(audit, ours)
    audit.store.delete(audit.name(GIVEN_UP))  # an audit that is begun again is not removed


def remove_unbegun(audit: Audit) -> None:
    """Remove the progress and the failures of an audit that was refused before it began; one that began stays."""
    store, folder = audit.store, f"audits/{audit.id}"
    if store.size(audit.name("audit.yaml")) is not None:
        return
    names = [n for n in store.names(folder) if n == audit.name(PROGRESS) or n.startswith(f"{folder}/failures/")]
    for name in names:
        store.delete(name)
    above = {f"{folder}/failures", folder, "audits"}
    for empty in sorted(above | {name.rpartition("/")[0] for name in names}, reverse=True):
        store.remove_empty(empty)


def given_up(audit: Audit) -> bool:
    """Whether gc is removing the audit, or was killed while it did."""
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
        settings = parse_yaml(data)
    except (yaml.YAMLError, ValueError) as error:
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


def read_table(audit: Audit, relative: str) -> pa.Table:
    """A Parquet file of the audit, page checksums verified."""
    return read_parquet(audit.store.read(audit.name(relative)))


def write_progress(audit: Audit, obj: Any) -> None:
    """Replace progress.json, a hint for observers of the run."""
    audit.store.replace(audit.name(PROGRESS), encode_json(obj))


def finish_audit(
    audit: Audit, files: Sequence[str | ListedFile], parts: Sequence[Record], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Write manifest.json, then the hint audits/latest.json; returns the manifest on storage.

    `files` are names relative to the audit, or entries that the writers of files returned. Of a name alone, size and
    sha256 are those of the file on storage. `settings` has at least the fingerprints, by which a reader finds the
    features.

    Raises:
        UserError: a listed file does not exist.
    """
    store = audit.store
    with ThreadPoolExecutor(READERS) as readers:
        listed = {file.name: file.entry for file in readers.map(lambda file: listed_file(audit, file), files)}
    ours = {
        "audit": audit.id,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": as_json(settings),
        "files": dict(sorted(listed.items())),
        "parts": [_part_entry(record) for record in parts],
    }
    write_json(audit, "manifest.json", ours)
    standing = read_manifest(audit)
    assert standing is not None, "a manifest that was created can be read"
    if recency(standing["finished"]) >= recency(_latest(store)):  # another driver may have finished it long ago
        store.replace(LATEST, encode_json({"audit": audit.id, "finished": standing["finished"]}))
    return standing


def _latest(store: Store) -> str:
    """When the audit in latest.json was finished; "" if the hint is missing or unreadable."""
    try:
        return str(json.loads(store.read(LATEST))["finished"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def recency(finished: str, now: datetime | None = None) -> tuple[bool, str]:
    """The key that orders audits from old to new. A time a day ahead is a wrong clock's and counts as the oldest."""
    limit = (now or datetime.now(UTC)) + timedelta(days=1)
    return finished <= limit.isoformat(timespec="seconds"), finished


def read_manifest(audit: Audit) -> dict[str, Any] | None:
    """The manifest of an audit; None while it is unfinished. Raises Damaged, naming the file."""
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
    """Raise TypeError or KeyError for a manifest that `finish_audit` cannot have written."""
    parts = manifest["parts"]
    texts = [manifest["finished"], *manifest["files"], *(part[key] for part in parts for key in ("name", "shard"))]
    entries = [*manifest["files"].values(), *parts]
    counts = [*(entry["size"] for entry in entries), *(part[key] for part in parts for key in ("rows", "rejected"))]
    if any(type(text) is not str or ".." in text.split("/") for text in (*texts, *(e["sha256"] for e in entries))):
        raise TypeError("a name or a digest is no text")
    if any(type(count) is not int for count in counts) or type(manifest["settings"]) is not dict:
        raise TypeError("a count or the settings are of another type")


def require_same_settings(audit: Audit, settings: Mapping[str, Any]) -> None:
    """That an audit which was begun has these settings. Raises UserError, naming the keys and both sides."""
    if audit.store.size(audit.name("audit.yaml")) is None:
        return
    if different := setting_differences(settings, read_settings(audit)):
        raise UserError(
            f"audit {audit.id} was begun with other settings: {'; '.join(different)}. Resume with the same settings"
            " or choose another audit=."
        )


def _require_same_plan(audit: Audit, plan: pa.Table) -> None:
    """Check that an audit has the given plan. A plan never changes, because scores belong to its shards."""
    ours, theirs = plan.to_pylist(), read_plan(audit)
    if ours == theirs:
        return
    our_sources, their_sources = ({(row["source"], row["version"]) for row in plan} for plan in (ours, theirs))
    entries = [
        *(f"{source} (version {version}) left" for source, version in sorted(their_sources - our_sources)),
        *(f"{source} (version {version}) is new" for source, version in sorted(our_sources - their_sources)),
    ]
    what = "; ".join(entries[:6]) + (f"; and {len(entries) - 6} more" if len(entries) > 6 else "")
    raise UserError(
        f"the data of audit {audit.id} changed since it began: {what or 'the same sources are cut into other shards'}."
        f" Expected the {len(theirs)} shards of {audit.name('plan.parquet')}: start a new audit (audit=…); features"
        " that are still valid are reused."
    )


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


def graded_file(method: str, shard: str) -> str:
    """Scores of consecutive shards with whether each sample shows the concept, named by the first."""
    return f"{method}/graded/{shard}.parquet"


def sums_file(method: str, shard: str) -> str:
    """The file of the sums over consecutive shards, named after the first."""
    return f"{method}/sums/{shard}.parquet"


def groups_file(method: str, kind: str) -> str:
    return f"{method}/by_{kind}.parquet"


def beside_report(name: str) -> str:
    """A file of the folder `report/`: a concept's page, a thumbnail, an original or a query's picture."""
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
    """The feature set of each method of an audit. Raises as `read_settings` does."""
    settings = read_settings(audit)
    if not isinstance(settings.get("fingerprints"), dict):
        raise Damaged(f"{audit.store.uri}/{audit.name('audit.yaml')} is damaged: it names no fingerprints")
    return {method: FeatureSet(str(fp)) for method, fp in settings["fingerprints"].items()}
