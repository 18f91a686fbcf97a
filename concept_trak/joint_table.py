"""The joint table of a finished audit: s_ij of the samples at either end, read off the features that stand there."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from concept_trak.joint import Layers
from concept_trak.layout import query_file
from concept_trak.novelty import shard_of
from concept_trak.precedent import finished
from concept_trak.store.codec import blocks
from concept_trak.store.manifest import Audit, read_plan, read_table, write_table
from concept_trak.store.records import part_name
from concept_trak.store.tables import from_rows

JOINT = {"concept": "string", "method": "string", "form": "string", "end": "string", "rank": "int32",
         "sample_id": "string", "layer": "string", "score": "float64"}  # fmt: skip
FILE = "joint.parquet"
SOLVED = {"damped": "solved", "plain": "phi"}


def rows(audit: Audit, found: Layers) -> Iterator[dict[str, Any]]:
    """One per sample of `top.parquet` and layer; a sample's sum to its score.

    Raises:
        ValueError: the audit is missing or unfinished.
    """
    prints, plan = finished(audit)["settings"]["fingerprints"], read_plan(audit)
    kept: dict[tuple[str, str], dict[str, tuple[float, Tensor]]] = {}
    for row in read_table(audit, "top.parquet").to_pylist():
        place = prints[row["method"]], shard_of(row, plan)
        if place not in kept:
            kept[place] = features(audit, *place)
        weight, phi = kept[place][row["sample_id"]]
        z = vector(audit, row["method"], row["concept"], row["form"])
        (parts,) = found.split(phi[None], torch.tensor([weight]), z).tolist()
        said = {key: row[key] for key in ("concept", "method", "form", "end", "rank", "sample_id")}
        yield from ({**said, "layer": layer, "score": s} for layer, s in zip(found.names, parts, strict=True))


def features(audit: Audit, fp: str, shard: str) -> dict[str, tuple[float, Tensor]]:
    """weight and phi [k] of a shard's samples, by id."""
    made = {}
    for block in blocks(audit.store.read(part_name(fp, shard))):
        each = zip(block.ids, block.weight.tolist(), torch.from_numpy(block.phi()), strict=True)
        made.update({sample: (weight, phi) for sample, weight, phi in each})
    return made


def vector(audit: Audit, method: str, concept: str, form: str) -> Tensor:
    """What phi is multiplied by: the solved query, or the query itself."""
    (row,) = read_table(audit, query_file(method, concept)).to_pylist()
    return torch.from_numpy(np.asarray(row[SOLVED[form]], np.float32))


def write(audit: Audit, made: list[dict[str, Any]]) -> str:
    """Put the table into the audit's folder, with which it is removed; the manifest does not list it.

    Raises:
        ValueError: other numbers stand there.
    """
    table = from_rows(JOINT, made)
    if not write_table(audit, FILE, table) and not read_table(audit, FILE).equals(table):
        raise ValueError(f"{audit.name(FILE)} holds other numbers; the audit was made anew: remove the file")
    return audit.name(FILE)
