"""Scores split by layer: s_i = sum_j s_ij over the layers j, for the samples at either end of a ranking.

An audit whose projector keeps layers apart splits them shard by shard on its workers; `python -m jobs.joint` splits
those of a finished audit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.by_layer import LayerColumns, block_of, layer_columns
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import Work
from concept_trak.store.codec import decode_blocks
from concept_trak.store.identity import FeatureSet
from concept_trak.store.lookup import shard_finder
from concept_trak.store.manifest import (
    Audit,
    feature_sets,
    finished_manifest,
    read_plan,
    read_table,
    write_table,
)
from concept_trak.store.queries import StoredQuery, read_query
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows

JOINT = {"concept": "string", "method": "string", "form": "string", "end": "string", "rank": "int32",
         "sample_id": "string", "layer": "string", "score": "float64"}  # fmt: skip
FILE = "joint.parquet"
SplitKey = tuple[str, str, str]
"""(concept, form, sample): whose score is split."""
Parts = dict[tuple[str, str, str, str], tuple[float, ...]]
"""s_ij over the layers j, by (method, concept, form, sample)."""


@dataclass(frozen=True)
class SplitTask(Task):
    """Scores of one shard that are split; `sizes` are the model's parameters, by name and number of scalars."""

    method: str
    shard: str
    keys: tuple[SplitKey, ...]
    sizes: tuple[tuple[str, int], ...]

    @property
    def label(self) -> str:
        return f"{self.method}-{self.shard}"


@dataclass(frozen=True)
class SplitResult:
    """By key of the task, in its order, s_ij over the layers j."""

    scores: tuple[tuple[float, ...], ...]


class SplitWorker:
    """Splits scores of one shard's samples by layer."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.settings.threads)
        self.work, self.audit = work, Audit(Store(work.config.store), work.config.audit)
        self.queries = cache(partial(read_query, self.audit))

    def __call__(self, task: SplitTask, attempt: Attempt) -> SplitResult:
        layers = layer_columns(self.work.config.projector, dict(task.sizes))
        features = shard_features(self.audit, self.work.features[task.method], task.shard)
        return SplitResult(
            tuple(
                layer_parts(layers, features[sample], self.queries(task.method, concept), form)
                for concept, form, sample in task.keys
            )
        )


def layer_parts(
    layers: LayerColumns, feature: tuple[float, Tensor], query: StoredQuery, form: str
) -> tuple[float, ...]:
    """One sample's score over the layers; `feature` is its weight and phi [k]."""
    weight, phi = feature
    (row,) = layers.split(phi[None], torch.tensor([weight]), torch.from_numpy(query.vector(form))).tolist()
    return tuple(row)


def split(audit: Audit, layers: LayerColumns) -> Parts:
    """The split scores of every sample in `top.parquet` of a finished audit.

    Raises:
        UserError: the audit is missing or unfinished.
    """
    finished_manifest(audit)
    sets, shard_of = feature_sets(audit), shard_finder(read_plan(audit))
    features = dict[tuple[FeatureSet, str], dict[str, tuple[float, Tensor]]]()
    parts, queries = Parts(), cache(partial(read_query, audit))
    for row in read_table(audit, "top.parquet").to_pylist():
        shard = sets[row["method"]], shard_of(row)
        if shard not in features:
            features[shard] = shard_features(audit, *shard)
        feature, query = features[shard][row["sample_id"]], queries(row["method"], row["concept"])
        key = row["method"], row["concept"], row["form"], row["sample_id"]
        parts[key] = layer_parts(layers, feature, query, row["form"])
    return parts


def joint_rows(top: Iterable[Mapping[str, Any]], names: Sequence[str], parts: Parts) -> Iterator[dict[str, Any]]:
    """One row for each row of `top.parquet` and layer; a sample's rows sum to its score."""
    for row in top:
        place = {key: row[key] for key in ("concept", "method", "form", "end", "rank", "sample_id")}
        own = parts[row["method"], row["concept"], row["form"], row["sample_id"]]
        yield from ({**place, "layer": layer, "score": s} for layer, s in zip(names, own, strict=True))


def shard_features(audit: Audit, features: FeatureSet, shard: str) -> dict[str, tuple[float, Tensor]]:
    """weight and phi [k] of a shard's samples, by id."""
    samples = dict[str, tuple[float, Tensor]]()
    for block in decode_blocks(audit.store.read(features.part(shard))):
        columns = zip(block.ids, block.weight.tolist(), torch.from_numpy(block.phi()), strict=True)
        samples |= {sample: (weight, phi) for sample, weight, phi in columns}
    return samples


def write_joint(audit: Audit, table_rows: list[dict[str, Any]]) -> str:
    """Put the table into the audit's folder, and return its name. It is removed together with the audit.

    Raises:
        UserError: the file exists with other numbers.
    """
    table = from_rows(JOINT, table_rows)
    if not write_table(audit, FILE, table) and not read_table(audit, FILE).equals(table):
        raise UserError(f"{audit.name(FILE)} holds other numbers; the audit was made anew: remove the file")
    return audit.name(FILE)


STRONGEST = 3  # parts of the network that a single image is shown with


@dataclass(frozen=True)
class Through:
    """A part of the network and its summand of a score. `share`: of that score; negative if the signs differ."""

    part: str
    score: float
    share: float


@dataclass(frozen=True)
class LayerScores:
    """The layers' names in the model's order, and every split score; both empty if the projector mixes layers."""

    names: tuple[str, ...] = ()
    parts: Parts | None = None

    def through(self, method: str, concept: str, form: str, samples: Sequence[str]) -> tuple[Through, ...]:
        """The sum of the samples' scores, split over the parts of the network."""
        if self.parts is None:
            return ()
        total = dict.fromkeys(map(block_of, self.names), 0.0)
        for sample in samples:
            for name, score in zip(self.names, self.parts[method, concept, form, sample], strict=True):
                total[block_of(name)] += score
        whole = sum(total.values())
        return tuple(Through(name, score, score / whole if whole else 0.0) for name, score in total.items())

    def strongest(self, method: str, concept: str, form: str, sample: str) -> tuple[Through, ...]:
        """The parts with the largest summands of a single score, by absolute value."""
        parts = self.through(method, concept, form, [sample])
        return tuple(sorted(parts, key=lambda part: -abs(part.score))[:STRONGEST])
