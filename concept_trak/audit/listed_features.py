"""The features that the manifest of a finished audit lists, found before anything is computed from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from concept_trak import UserError
from concept_trak.audit.finished_audit import REMEDY, FinishedAudit
from concept_trak.store.compaction import committed
from concept_trak.store.consistency import planned_shard
from concept_trak.store.identity import FeatureSet, read_feature_settings
from concept_trak.store.part import Damaged
from concept_trak.store.records import Record


def listed_settings(results: FinishedAudit, method: str, features: FeatureSet) -> dict[str, Any]:
    """The settings of a method's features. Raises UserError if there are none."""
    try:
        return read_feature_settings(results.audit.store, features).settings
    except FileNotFoundError:
        raise _gone(results, method, features) from None


def listed_records(
    results: FinishedAudit, method: str, features: FeatureSet, plan: Sequence[Mapping[str, Any]]
) -> list[Record]:
    """The records of a method's parts, in plan order, once they are those that the manifest lists.

    Raises:
        UserError: some are gone.
        Damaged: a part was computed again since.
    """
    done = committed(results.audit.store, features, [planned_shard(row) for row in plan])
    if len(done) < len(plan):
        raise _gone(results, method, features)
    listed = {part["shard"]: part["sha256"] for part in results.parts(method)}
    if altered := next((shard for shard, record in done.items() if listed.get(shard) != record.sha256), ""):
        where = f"{results.audit.store.uri}/{features.part(altered)}"
        raise Damaged(f"{where} is not the part that audit {results.audit.id} was computed from. {REMEDY}")
    return list(done.values())


def _gone(results: FinishedAudit, method: str, features: FeatureSet) -> UserError:
    return UserError(
        f"the features of {method} are gone: {results.audit.store.uri}/{features.folder} does not hold every part that "
        f"audit {results.audit.id} lists (was it removed, or copied without them?). To have them again, run the audit "
        "under another name"
    )
