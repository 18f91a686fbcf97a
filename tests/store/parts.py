"""Parts for the tests of storage, reproducible from a seed."""

import numpy as np

from concept_trak.store.consistency import PlannedShard
from concept_trak.store.part import Part, Reject


def a_part(
    n: int = 20, k: int = 16, seed: int = 0, shard: str = "train-0-20", fingerprint: str = "f00d", first_row: int = 0
) -> Part:
    """A part of n rows whose norms span six orders of magnitude, with two rejects after them."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(n, k)) * 10.0 ** rng.uniform(-3, 3, size=(n, 1))
    rejects = (
        Reject("reject-0", "a.parquet", first_row + n, "no_direction", 'the two conditions are "equal"'),
        Reject("reject-1", "a.parquet", first_row + n + 1, "decode", "truncated PNG — 12 bytes"),
    )
    ids = tuple(f"img-{row:02d}" for row in range(n))
    return Part(fingerprint, shard, ids, rng.uniform(0.5, 2, n).astype(np.float32), phi.astype(np.float32), rejects)


def planned(*names: str, rows: int = 22, first_row: int = 0) -> list[PlannedShard]:
    """Shards of `a_part`, as a plan has them."""
    return [PlannedShard(name, "a.parquet", first_row, rows) for name in names]
