"""The labels and words that have their own row in the aggregates: the most frequent ones, counted over the index.

At most `MOST_GROUPS` counts are kept (Misra and Gries, 1982): if there are more groups, the largest count that is
dropped is subtracted from the counts that are kept. Such counts can be added (Agarwal et al., 2012). A group with more
than 1 / (MOST_GROUPS + 1) of all pairs of a sample and a group is always kept. The score pass counts the kept groups
exactly.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from concept_trak.audit.aggregate import KEYS, MOST_GROUPS
from concept_trak.audit.index import IndexSettings
from concept_trak.audit.mapper import Attempt, Mapper, Task
from concept_trak.config import DataConfig
from concept_trak.data.index import GROUP_COUNTS, LABEL, count_groups
from concept_trak.data.inventory import Survey
from concept_trak.store.sources import READERS, index_columns, read_source_index
from concept_trak.store.store import Store
from concept_trak.store.tables import compute as pc
from concept_trak.store.tables import to_parquet

SOURCES_AT_ONCE = 256


@dataclass(frozen=True)
class CountTask(Task):
    """The names of some indices."""

    indices: tuple[str, ...]

    @property
    def label(self) -> str:
        return self.indices[0].rpartition("/")[2]


@dataclass(frozen=True)
class CountResult:
    """The frequent labels and words of some indices: columns as `GROUP_COUNTS`, at most `MOST_GROUPS` rows."""

    counts: pa.Table


class CountWorker:
    """Counts the labels and words of some indices."""

    def __init__(self, settings: IndexSettings) -> None:
        self.store, self.labels = Store(settings.store), settings.data.label_columns

    def __call__(self, task: CountTask, attempt: Attempt) -> CountResult:
        columns = ["words", *(f"{LABEL}{label}" for label in self.labels)]
        return CountResult(count_indices(self.store, task, columns))


def count_indices(store: Store, task: CountTask, columns: Sequence[str]) -> pa.Table:
    """The most frequent groups of some indices: `GROUP_COUNTS`. `columns` are those with words and labels."""
    with ThreadPoolExecutor(READERS) as readers:
        tables = readers.map(lambda name: read_source_index(store, name, columns), task.indices)
        return most_frequent(count_groups(table) for table in tables)


def most_frequent(counts: Iterable[pa.Table]) -> pa.Table:
    """The sum of the counts. The total never has more than `MOST_GROUPS` groups."""
    total = GROUP_COUNTS.empty_table()
    for table in counts:
        grouped = (
            pa.concat_tables([total, table]).group_by(list(KEYS), use_threads=False).aggregate([("samples", "sum")])
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
    """The file with the labels and words that have their own row; "" if every one has its own row.

    Args:
        store: the store of the indices.
        data: the settings of the data.
        survey: the indexed sources.
        mapper: runs the counting, once for a listing.
    """
    if survey.vocabulary <= MOST_GROUPS:
        return ""
    settings = IndexSettings(store.uri, data)
    name = settings.sources.heavy(survey.listing)
    if store.size(name) is None:
        tasks = count_tasks([stored.name for source in survey.sources for stored in source.stored])
        results = mapper("words", CountWorker, settings, tasks)
        store.create(name, to_parquet(most_frequent(_in_order(tasks, results))))
    return name


def count_tasks(indices: Sequence[str]) -> list[CountTask]:
    """The tasks that count these indices, some of them at once."""
    starts = range(0, len(indices), SOURCES_AT_ONCE)
    return [CountTask(tuple(indices[start : start + SOURCES_AT_ONCE])) for start in starts]


def _in_order(tasks: Sequence[CountTask], results: Iterable[tuple[CountTask, CountResult]]) -> Iterator[pa.Table]:
    """The counts in the order of the tasks, on which the groups at the margin depend."""
    numbers, waiting = {task.indices: number for number, task in enumerate(tasks)}, dict[int, pa.Table]()
    following = 0
    for task, result in results:
        waiting[numbers[task.indices]] = result.counts
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def recount_groups(store: Store, indices: Sequence[str]) -> pa.Table:
    """The most frequent groups of a listing, counted again in this process."""
    columns = [c for c in index_columns(store, indices[0]) if c == "words" or c.startswith(LABEL)]
    return most_frequent(count_indices(store, task, columns) for task in count_tasks(indices))


def read_heavy_groups(store: Store, name: str) -> pa.Table | None:
    """The labels and words in the file `name`; None if `name` is empty. Raises Damaged with the file's name."""
    return read_source_index(store, name) if name else None
