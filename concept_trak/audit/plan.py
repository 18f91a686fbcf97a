"""The plan of an audit: its shards, made or read back, and the settings that the fingerprint of features covers."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from concept_trak import NUMERICS, UserError
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.method import Method, method_settings, norm_settings
from concept_trak.audit.index import IndexSettings, IndexTask, indexed_parts
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.data.captions import caption_columns
from concept_trak.data.shard import Shard, Source, StoredIndex, cut
from concept_trak.data.survey import list_sources
from concept_trak.store.sources import SourceSet, source_name
from concept_trak.store.store import Store

PREPROCESSING = ("crop", "enlarge", "transparency", "most_pixels", "buckets", "frames", "spread_frames")
"""Settings of `data` that change pixels, or which images become samples."""


def shards(sources: Sequence[Source], shard_rows: int) -> list[Shard]:
    """All shards, in plan order: sources by name, rows rising."""
    return [shard for source in sources for shard in cut(source, shard_rows)]


def read_shards(store: Store, data: DataConfig, plan: Sequence[Mapping[str, Any]]) -> list[Shard]:
    """The shards of a plan that was read back (`read_plan`), with the files that hold the index of their rows.

    No image is opened, and nothing is indexed. Only folders of images are listed again, because their indices are named
    after the versions of their images.

    Args:
        store: where the indices are.
        data: how the data are read; `shard_rows` is that of the plan.
        plan: its rows.

    Raises:
        UserError: a folder, or an index, is not as it was when the audit was planned.
    """
    sources = IndexSettings(store.uri, data).sources
    indices, rows = set(store.names(sources.folder)), dict[str, int]()
    for row in plan:
        rows[row["source"]] = max(rows.get(row["source"], 0), row["first_row"] + row["rows"])
    shards = [
        Shard(
            source=row["source"],
            version=row["version"],
            first_row=row["first_row"],
            rows=row["rows"],
            stored=(StoredIndex(sources.index(source_name(row["source"], row["version"], 0)), 0, rows[row["source"]]),),
        )
        for row in plan
    ]
    if all(shard.stored[0].name in indices for shard in shards):
        return shards
    folders = {shard.name: shard for shard in _folder_shards(sources, data)}
    shards = [shard if shard.stored[0].name in indices else folders.get(shard.name, shard) for shard in shards]
    if changed := next((s for s in shards if not {stored.name for stored in s.stored} <= indices), None):
        raise UserError(
            f"{changed.source} changed since the audit was planned, or its index is gone, so the captions and pictures "
            "of its samples are not known. Run the command of the audit again: it indexes data that are unchanged. If "
            "they changed, start a new audit (audit=...): it reuses the features that are still valid"
        )
    return shards


def _folder_shards(sources: SourceSet, data: DataConfig) -> Iterable[Shard]:
    """The shards of the folders of images of a data set as they are now."""
    for source in list_sources(data).sources:
        if not source.version:
            parts = [(IndexTask(part).name, part) for part in indexed_parts(source)]
            stored = tuple(StoredIndex(sources.index(name), part.first_row, part.rows) for name, part in parts)
            yield from cut(replace(source, stored=stored), data.shard_rows)


def feature_settings(
    config: AuditConfig, method: Method, denoiser: Denoiser, identity: dict[str, str]
) -> dict[str, Any]:
    """Every setting that changes a feature's numbers, and no other: the input of the fingerprint.

    `identity` is `denoiser.identity()`. It is an argument because it reads every weight, and several methods share it.
    """
    row = method_settings(method)
    sizes = {name: list(p.shape) for name, p in denoiser.parameters.items()}
    return {
        "numerics": NUMERICS,
        "model": identity,
        "parameters": hashlib.sha256(repr(sizes).encode()).hexdigest(),
        "negative": [denoiser.negative, *(denoiser.combinations if denoiser.negative == "other_label" else ())],
        "train": row["train"],
        **norm_settings(method),
        "weight": row["weight"],
        "seed": config.seed,
        "projector": {
            "kind": config.projector.kind,
            "dim": config.projector.width(sum(p.numel() for p in denoiser.parameters.values())),
            "seed": config.projector.seed,
        },
        "preprocessing": {"resolution": denoiser.resolution, **_changed(config.data, *PREPROCESSING)},
        "columns": [config.data.image_column, *caption_columns(config.data)],
        **_changed(config.data, "captions", "conditioning_image_column"),
        # Ids that are made tell where below data.uri a row lies, and noise is keyed by ids.
        "ids": config.data.id_column or f"made below {config.data.uri}",
        "precision": config.model.precision,
        "stored": [config.feature.dtype, config.feature.encoding],
    }


def _changed(data: DataConfig, *names: str) -> dict[str, Any]:
    """The settings that differ from their defaults, so that a new setting does not change existing fingerprints."""
    return {n: getattr(data, n) for n in names if getattr(data, n) != getattr(DataConfig(), n)}


def feature_bytes(config: AuditConfig, parameters: int) -> int:
    """Bytes of one sample's feature on storage, for one method."""
    itemsize = 4 if config.feature.encoding == "list" else np.dtype(config.feature.dtype).itemsize
    return config.projector.width(parameters) * itemsize


@dataclass(frozen=True)
class Demand:
    """`parameters` attributable numbers in `tensors` tensors; bytes of one sample's feature and of one's gradient."""

    parameters: int
    tensors: int
    feature: int
    gradient: int


def demand(config: AuditConfig, denoiser: Denoiser) -> Demand:
    """The demand of a model. A gradient counts as dense, in the model's precision. Layers keep theirs as two thin
    matrices if that is smaller, so this is the most that a sample of a batch needs, besides model and activations.
    """
    chosen = denoiser.parameters.values()
    parameters = sum(p.numel() for p in chosen)
    gradient = sum(p.numel() * p.element_size() for p in chosen)
    return Demand(parameters, len(chosen), feature_bytes(config, parameters), gradient)


def readable(size: float | int) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
