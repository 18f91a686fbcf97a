"""Scores split by layer: s_i = sum_j s_ij over the layers j, for the samples at either end of a ranking.

An audit whose projector keeps layers apart splits them shard by shard on its workers; `python -m jobs.joint` splits
those of a finished audit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from concept_trak import UserError
from concept_trak.attribution.by_layer import LayerColumns, block_of, layer_columns
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.results import Tally
from concept_trak.audit.retrieval_ranks import FORMS, column
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig
from concept_trak.store.codec import decode_blocks
from concept_trak.store.lookup import shard_finder
from concept_trak.store.manifest import (
    Audit,
    feature_sets,
    finished_manifest,
    read_plan,
    read_table,
    write_table,
)
from concept_trak.store.part import Block
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
        blocks = decode_blocks(self.audit.store.read(self.work.features[task.method].part(task.shard)))
        parts = split_scores(layers, task.method, task.keys, blocks, partial(self.queries, task.method))
        return SplitResult(tuple(parts[task.method, *key] for key in task.keys))


def end_keys(config: AuditConfig, tally: Tally) -> dict[tuple[str, str], tuple[SplitKey, ...]]:
    """By method and shard, the scores at the ends of the rankings, each once."""
    keys = defaultdict[tuple[str, str], dict[SplitKey, None]](dict)
    for method, concept, form in product(config.methods, config.concepts, FORMS):
        ends = tally.ends[method, column(concept.name, form)]
        for _, sample, shard in (*ends.top, *ends.bottom):
            keys[method, shard][concept.name, form, sample] = None
    return {place: tuple(own) for place, own in keys.items()}


def split_scores(
    layers: LayerColumns,
    method: str,
    keys: Sequence[SplitKey],
    blocks: Iterable[Block],
    query: Callable[[str], StoredQuery],
) -> Parts:
    """The split scores of the samples that some blocks of features have.

    Args:
        layers: the layer of each column of the features.
        method: the features' method.
        keys: the scores; those of samples in other blocks are left out.
        blocks: the features.
        query: the query of a concept, by its name.
    """
    of_sample, parts = defaultdict[str, list[SplitKey]](list), Parts()
    for key in keys:
        of_sample[key[2]].append(key)
    for block in blocks:
        for row, sample in enumerate(block.ids):
            for concept, form, _ in of_sample.get(sample, ()):
                parts[method, concept, form, sample] = _layer_parts(layers, block, row, query(concept).vector(form))
    return parts


def _layer_parts(layers: LayerColumns, block: Block, row: int, z: Float32[np.ndarray, " k"]) -> tuple[float, ...]:
    """The score of one row of a block over the layers."""
    phi = torch.from_numpy(block.unit[row].astype(np.float32) * block.scale[row])
    (parts,) = layers.split(phi[None], torch.tensor(block.weight[row : row + 1]), torch.from_numpy(z)).tolist()
    return tuple(parts)


def split(audit: Audit, layers: LayerColumns) -> Parts:
    """The split scores of every sample in `top.parquet` of a finished audit.

    Raises:
        UserError: the audit is missing or unfinished.
    """
    finished_manifest(audit)
    sets, shard_of, parts = feature_sets(audit), shard_finder(read_plan(audit)), Parts()
    queries, keys = cache(partial(read_query, audit)), defaultdict[tuple[str, str], list[SplitKey]](list)
    for row in read_table(audit, "top.parquet").to_pylist():
        keys[row["method"], shard_of(row)].append((row["concept"], row["form"], row["sample_id"]))
    for (method, shard), own in keys.items():
        blocks = decode_blocks(audit.store.read(sets[method].part(shard)))
        parts |= split_scores(layers, method, own, blocks, partial(queries, method))
    return parts


def joint_rows(top: Iterable[Mapping[str, Any]], names: Sequence[str], parts: Parts) -> Iterator[dict[str, Any]]:
    """One row for each row of `top.parquet` and layer; a sample's rows sum to its score."""
    for row in top:
        place = {key: row[key] for key in ("concept", "method", "form", "end", "rank", "sample_id")}
        own = parts[row["method"], row["concept"], row["form"], row["sample_id"]]
        yield from ({**place, "layer": layer, "score": s} for layer, s in zip(names, own, strict=True))


def write_joint(audit: Audit, table_rows: list[dict[str, Any]]) -> str:
    """Put the table into the audit's folder, and return its name. It is removed together with the audit.

    Raises:
        UserError: the file exists with other numbers.
    """
    table = from_rows(JOINT, table_rows)
    if not write_table(audit, FILE, table) and not read_table(audit, FILE).equals(table):
        raise UserError(f"{audit.name(FILE)} holds other numbers; the audit was made anew: remove the file")
    return audit.name(FILE)


STRONGEST = 3  # parts of the network that a score is shown with


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

    def strongest(self, method: str, concept: str, form: str, samples: Sequence[str]) -> tuple[Through, ...]:
        """The parts with the largest summands of the samples' scores together, by absolute value."""
        parts = self.through(method, concept, form, samples)
        return tuple(sorted(parts, key=lambda part: -abs(part.score))[:STRONGEST])
