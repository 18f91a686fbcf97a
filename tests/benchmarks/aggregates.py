"""The score pass with and without sums by source, label and word, in turns: `python -m tests.benchmarks.aggregates`.

32,768 samples of 4096 float16 numbers, captions of 10 words, 16 queries. The index is read from storage.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from concept_trak.audit.score import ScoreWorker, score_tasks
from concept_trak.config import DataConfig
from concept_trak.data.index import index_source
from concept_trak.data.shard import Shard, StoredIndex
from concept_trak.data.survey import list_sources
from concept_trak.store.sources import write_source_index
from concept_trak.store.store import Store
from tests.benchmarks.on_storage import FIRST, PART_ROWS, Bench, write
from tests.data.files import write as write_rows

SAMPLES, WIDTH, QUERIES, WORDS, VOCABULARY, ROUNDS = 32_768, 4096, 16, 10, 5000, 5


def shards(folder: Path, bench: Bench) -> list[Shard]:
    """The shards of the parts, their index on storage."""
    store, draw = Store(str(folder / "store")), np.random.default_rng(0)
    plan = []
    for first in range(0, SAMPLES, PART_ROWS):
        words = draw.zipf(1.3, (PART_ROWS, WORDS)) % VOCABULARY
        captions = [" ".join(f"w{word}" for word in row) for row in words]
        ids = [f"sample-{n:09d}" for n in range(first, first + PART_ROWS)]
        columns = {"id": ids, "image": [{"bytes": b"", "path": None}] * PART_ROWS, "caption": captions}
        data = DataConfig(write_rows(folder / f"{first}.parquet", columns), id_column="id")
        (source,) = list_sources(data).sources
        name = f"sources/bench/{first}.parquet"
        write_source_index(store, name, index_source(source, data).table)
        stored = (StoredIndex(name, 0, PART_ROWS),)
        plan.append(Shard(source=source.uri, version="1", first_row=0, rows=PART_ROWS, stored=stored))
    return plan


def seconds(scorer: ScoreWorker, bench: Bench, plan: list[Shard]) -> float:
    """CPU time of a pass."""
    start = time.process_time()
    for task in score_tasks("m", bench.records, plan):
        scorer(task, FIRST)
    return time.process_time() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = write(folder / "store", SAMPLES, WIDTH, QUERIES, "float16")
        plan = shards(folder, bench)
        rounds = [(seconds(bench.scorer, bench, []), seconds(bench.scorer, bench, plan)) for _ in range(ROUNDS)]
    without, summed = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"without sums {1e6 * without / SAMPLES:.1f} us a sample, with sums {1e6 * summed / SAMPLES:.1f}")
    print(f"speed with sums: {without / summed:.2f} of the pass without, median of {ROUNDS} rounds")


if __name__ == "__main__":
    main()
