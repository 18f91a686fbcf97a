"""From a data set and a configuration to the work: shards, and what names their features."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_trak import NUMERICS
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.method import Method, method_settings, norm_settings
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.data.columns import caption_columns
from concept_trak.data.shard import Shard, Source, cut

PREPROCESSING = ("crop", "enlarge", "transparency", "most_pixels", "buckets")
"""Settings of `data` that change pixels, or which images become samples."""


def shards(sources: Sequence[Source], shard_rows: int) -> list[Shard]:
    """All shards, in plan order: sources by name, rows rising."""
    return [shard for source in sources for shard in cut(source, shard_rows)]


def feature_settings(
    config: AuditConfig, method: Method, denoiser: Denoiser, identity: dict[str, str]
) -> dict[str, Any]:
    """Every setting that changes a feature's numbers, and nothing else: what the fingerprint is taken of.

    `identity` is `denoiser.identity()`, given because it reads every weight and serves several methods.
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
        **_changed(config.data, "captions"),
        # Ids that are made tell where below data.uri a row lies, and noise is keyed by ids.
        "ids": config.data.id_column or f"made below {config.data.uri}",
        "precision": config.model.precision,
        "stored": [config.feature.dtype, config.feature.encoding],
    }


def _changed(data: DataConfig, *names: str) -> dict[str, Any]:
    """The settings that are not what they are by default: a setting that is added leaves fingerprints as they were."""
    return {n: getattr(data, n) for n in names if getattr(data, n) != getattr(DataConfig(), n)}


def feature_bytes(config: AuditConfig, parameters: int) -> int:
    """Bytes that one sample's feature takes on storage, for one method."""
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
    """A gradient counts whole, in the model's precision: layers keep theirs as products of two thin matrices where that
    is smaller, so a worker needs at most this for each sample of a batch, beside the model and its activations.
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
