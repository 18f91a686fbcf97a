"""A part that another attempt left: whether it is whole, and whether it is the same shard as ours."""

import logging
from collections.abc import Sequence

import numpy as np

from concept_trak.store import codec
from concept_trak.store.codec import Damaged, Footer, Part
from concept_trak.store.commit import Store

# Two roundings of one number to float16 differ by at most 2^-10, hence two stored rows by at most 1e-3. Five times
# that leaves room for sums reordered by another batch size or device; what is above is another computation. int8
# explains more, row by row: `Block.rounding`.
ADOPT_TOLERANCE = 5e-3
REPAIR = "Run `python -m jobs.verify repair=true`: it removes the record, then the part, and the shard is done again."

logger = logging.getLogger(__name__)


def adopt(store: Store, name: str, ours: Part) -> None:
    """Check that the part another attempt left is the same shard, and log how far its rows are from ours."""
    data = store.read(name)
    where = f"{store.uri}/{name}"
    said = verified(data, ours.fingerprint, ours.shard, where)
    standing = list(codec.blocks(data))
    theirs = [sample_id for block in standing for sample_id in block.ids]
    if theirs != list(ours.ids) or said.k != ours.phi.shape[1]:
        raise ValueError(
            f"{where} holds {len(theirs)} rows of k={said.k} ({_first_difference(theirs, ours.ids)}), but this attempt"
            f" computed {len(ours.ids)} rows of k={ours.phi.shape[1]} ({_first_difference(ours.ids, theirs)}). Expected"
            f" the same samples under one shard name: the data changed under its version, or rejects differ. {REPAIR}"
        )
    cuts = np.cumsum([len(block.ids) for block in standing])[:-1]
    mine = np.split(ours.phi, cuts) if standing else []
    largest = max((_row_difference(a, block.phi()) for a, block in zip(mine, standing, strict=True)), default=0.0)
    explained = ADOPT_TOLERANCE + max((block.rounding() for block in standing), default=0.0)
    level = logging.WARNING if largest > explained else logging.INFO
    text = "adopted %s, written by another attempt; largest relative row difference %.2g (rounding explains %.2g)"
    logger.log(level, text, where, largest, explained)


def _row_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max over rows of ‖a − b‖ / max(‖a‖, ‖b‖), in float64; 0 where both are zero."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    size = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return float(np.max(np.linalg.norm(a - b, axis=1) / np.where(size > 0, size, 1.0)))


def _first_difference(ids: Sequence[str], others: Sequence[str]) -> str:
    """The first sample that the others do not have at its place."""
    differing = (sample_id for row, sample_id in enumerate(ids) if row >= len(others) or sample_id != others[row])
    return f"first difference {next(differing, 'none')}"


def verified(data: bytes, fp: str, shard: str, where: str) -> Footer:
    """The footer of a part whose pages, rows and Σ‖φ‖² hold, and that is the shard it is named after."""
    try:
        said = codec.footer(data)
        norms = [block.norms() for block in codec.blocks(data)]
        sum_squares = codec.sum_of_squares(np.concatenate([*norms, np.zeros(0)]))
    except Damaged as error:
        raise Damaged(f"{where}: {error}. {REPAIR}") from error
    if (said.fingerprint, said.shard) != (fp, shard):
        raise ValueError(
            f"{where} is shard {said.shard} of features {said.fingerprint}; expected shard {shard} of {fp}. Parts of"
            f" different settings are never mixed. {REPAIR}"
        )
    if sum_squares != said.sum_squares:
        raise Damaged(f"{where}: Σ‖φ‖² is {sum_squares}, its footer says {said.sum_squares}. {REPAIR}")
    return said
