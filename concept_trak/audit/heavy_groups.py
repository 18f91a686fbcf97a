"""Which labels and words have a row of their own in the aggregates: the most frequent ones, counted over the index.

Counts are kept for `MOST_GROUPS` groups (Misra and Gries, 1982): where there are more, the count of the first that is
left out is taken from all. Two such counts add up to a third (Agarwal et al., 2012). Each group with more than
1 / (MOST_GROUPS + 1) of all pairs of a sample and a group is among those kept; the score pass counts these exactly.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from concept_trak.audit.aggregate import KEYS, MOST_GROUPS
from concept_trak.audit.index import IndexSettings
from concept_trak.audit.mapper import Attempt, Mapper, Task
from concept_trak.config import DataConfig
from concept_trak.data.index import GROUP_COUNTS, LABEL, count_groups
from concept_trak.data.inventory import Survey
from concept_trak.store.sources import READERS, read_source_index
from concept_trak.store.store import Store
from concept_trak.store.tables import compute as pc
from concept_trak.store.tables import to_parquet

SOURCES_AT_ONCE = 256


@dataclass(frozen=True)
class CountTask(Task):
    """Some indices, by name."""

    indices: tuple[str, ...]

    @property
    def label(self) -> str:
        return self.indices[0].rpartition("/")[2]


@dataclass(frozen=True)
class CountResult:
    """The frequent labels and words of some indices: `GROUP_COUNTS`, at most `MOST_GROUPS` rows."""

    counts: pa.Table


class CountWorker:
    """Counts the labels and words of some indices."""

    def __init__(self, settings: IndexSettings) -> None:
        self.store, self.labels = Store(settings.store), settings.data.label_columns

    def __call__(self, task: CountTask, attempt: Attempt) -> CountResult:
        columns = ["words", *(f"{LABEL}{label}" for label in self.labels)]
        with ThreadPoolExecutor(READERS) as readers:
            tables = readers.map(lambda name: read_source_index(self.store, name, columns), task.indices)
            return CountResult(most_frequent(count_groups(table) for table in tables))


def most_frequent(counts: Iterable[pa.Table]) -> pa.Table:
    """The counts added up, never more than `MOST_GROUPS` groups at a time."""
    total = GROUP_COUNTS.empty_table()
    for some in counts:
        grouped = (
            pa.concat_tables([total, some]).group_by(list(KEYS), use_threads=False).aggregate([("samples", "sum")])
        )
        total = grouped.rename_columns([*KEYS, "samples"]).cast(GROUP_COUNTS)
        if total.num_rows > MOST_GROUPS:
            total = total.sort_by([("samples", "descending"), *((key, "ascending") for key in KEYS)])
            left_out = total["samples"][MOST_GROUPS]
            reduced = total.slice(0, MOST_GROUPS)
            total = reduced.set_column(3, "samples", pc.subtract(reduced["samples"], left_out))
            total = total.filter(pc.field("samples") > 0)
    return total


def heavy_groups(store: Store, data: DataConfig, survey: Survey, mapper: Mapper) -> str:
    """The file with the labels and words that have a row of their own; "" where all have.

    Args:
        store: where the indices are.
        data: how the data are read.
        survey: the sources, indexed.
        mapper: where they are counted, once for a listing.
    """
    if survey.vocabulary <= MOST_GROUPS:
        return ""
    settings = IndexSettings(store.uri, data)
    name = settings.sources.heavy(survey.listing)
    if store.size(name) is None:
        indices = [stored.name for source in survey.sources for stored in source.stored]
        starts = range(0, len(indices), SOURCES_AT_ONCE)
        tasks = [CountTask(tuple(indices[start : start + SOURCES_AT_ONCE])) for start in starts]
        results = mapper("words", CountWorker, settings, tasks)
        store.create(name, to_parquet(most_frequent(result.counts for _, result in results)))
    return name


def read_heavy_groups(store: Store, name: str) -> pa.Table | None:
    """The labels and words of such a file; None for no name. Raises Damaged, naming the file."""
    return read_source_index(store, name) if name else None
