"""The index of the data, made once per version of a source: the names of its files, and how they are written and read.

    sources/<data fingerprint>/<source>.parquet       one row per sample
    sources/<data fingerprint>/records/<source>.json  rows, bytes and sha256 of that file; exists once it is written
    sources/<data fingerprint>/ids/<source>.bin       sorted digests of the ids, for data with a column of ids
    sources/<data fingerprint>/surveys/<time>-<listing>.parquet   the records of all sources of a listing
    sources/<data fingerprint>/unique/<listing>.json  exists once the ids of a listing have been found unique
    sources/<data fingerprint>/heavy/<listing>.parquet   the most frequent labels and words of a listing
    sources/<data fingerprint>/plans/<shards>-<listing>.json   exists for shards of folders of images: their listing

An index does not depend on a model, so all audits, models and methods on the same data share it. All other files can be
made again from the indices and their records.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak.store.identity import encode_json, fingerprint
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store
from concept_trak.store.tables import read_columns, read_parquet, to_parquet

SOURCES = "sources"
ROW_GROUP = 4096  # rows of a row group of an index: a shard is usually in one or two
READERS = 16  # requests in flight while records are read
PLANNED = b"{}"
"""The content of the file `SourceSet.plan`."""
REMEDY = "Remove it, or run `python -m jobs.verify repair=true`: the source is indexed again when it is needed"


@dataclass(frozen=True, order=True)
class SourceSet:
    """The names of all index files of data that are read with the same settings."""

    fingerprint: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "SourceSet":
        """The names for these settings of the data."""
        return cls(fingerprint(settings))

    @property
    def folder(self) -> str:
        return f"{SOURCES}/{self.fingerprint}"

    def index(self, name: str) -> str:
        """The file with one row per sample of a source."""
        return f"{self.folder}/{name}.parquet"

    def record(self, name: str) -> str:
        """The file whose existence means that a source is indexed."""
        return f"{self.folder}/records/{name}.json"

    def ids(self, name: str) -> str:
        """The file with the digests of a source's ids."""
        return f"{self.folder}/ids/{name}.bin"

    @property
    def surveys(self) -> str:
        """The folder of the surveys."""
        return f"{self.folder}/surveys"

    def heavy(self, listing: str) -> str:
        """The file with the most frequent labels and words of a listing."""
        return f"{self.folder}/heavy/{listing}.parquet"

    def unique(self, listing: str) -> str:
        """The file whose existence means that no id occurs twice in a listing."""
        return f"{self.folder}/unique/{listing}.json"

    def plan(self, shards: Iterable[str], listing: str) -> str:
        """The file whose name has the listing that shards with these names were cut from."""
        return f"{self.folder}/plans/{_short(chr(10).join(sorted(shards)))}-{listing}.json"


def source_name(uri: str, version: str, first_row: int) -> str:
    """The name of the files of a source, or of a range of a folder: a readable stem, and hashes of the arguments."""
    stem = uri.rstrip("/").rpartition("/")[2].split(".")[0][:40]
    part = f"{version}\n{first_row}"
    return f"{stem}-{_short(uri)}-{_short(part)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_source_index(store: Store, name: str, table: pa.Table) -> tuple[int, str]:
    """Write an index if it is absent; return (bytes, sha256) of the file that the store then has."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    if not store.create(name, data):
        data = store.read(name)
    return len(data), hashlib.sha256(data).hexdigest()


def read_source_index(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole index, or some of its columns. Raises Damaged with the file's name."""
    try:
        return read_columns(store, name, columns)
    except (pa.ArrowException, OSError) as error:
        raise_damaged(error, f"{store.uri}/{name}")
        raise


def index_columns(store: Store, name: str) -> list[str]:
    """The names of the columns of an index. Raises Damaged, naming the file."""
    try:
        return pq.ParquetFile(store.open(name), pre_buffer=True).schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise_damaged(error, f"{store.uri}/{name}")
        raise


class IndexFile:
    """An index that is read by row groups; the last ones are kept, because shards are read in order."""

    def __init__(self, store: Store, name: str) -> None:
        self._where, self._kept = f"{store.uri}/{name}", dict[int, pa.Table]()
        try:
            self._file = pq.ParquetFile(store.open(name), pre_buffer=True, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise_damaged(error, self._where)
            raise

    def rows(self, first: int, count: int) -> pa.Table:
        """Rows first ... first + count - 1 of the file. Raises Damaged with the file's name."""
        groups = range(first // ROW_GROUP, (first + count - 1) // ROW_GROUP + 1)
        try:
            self._kept = {g: self._kept.get(g) or self._file.read_row_group(g) for g in groups}
        except (pa.ArrowException, OSError) as error:
            raise_damaged(error, self._where)
            raise
        return pa.concat_tables(self._kept.values()).slice(first - groups[0] * ROW_GROUP, count)


def raise_damaged(error: Exception, where: str) -> None:
    """Raise Damaged if Arrow's error is about the bytes of a file. Return if the storage failed."""
    if not (isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError)):
        raise Damaged(f"{where} is damaged: {error}. {REMEDY}") from error


def write_source_record(store: Store, name: str, facts: Mapping[str, Any]) -> None:
    """Write the record of a source if it is absent."""
    store.create(name, encode_json(facts))


def read_source_records(store: Store, names: Iterable[str]) -> list[dict[str, Any]]:
    """The records with these names, read with many requests at a time. Raises Damaged with the file's name."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda name: _source_record(store, name), names))


def _source_record(store: Store, name: str) -> dict[str, Any]:
    try:
        record = json.loads(store.read(name))
        if type(record) is not dict or type(record["rows"]) is not int or type(record["sha256"]) is not str:
            raise TypeError("rows or sha256 is of another type")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}. {REMEDY}") from error
    return record


def listing_of(survey: str) -> str:
    """The hash over the sources of a survey, taken from the survey's name."""
    return survey.rpartition("-")[2].removesuffix(".parquet")


SURVEY = pa.schema({"name": pa.string(), "record": pa.string()})


def write_survey(store: Store, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the records of all sources of a listing, by their names, to one file if it is absent."""
    rows = [{"name": n, "record": json.dumps(record, sort_keys=True)} for n, record in records.items()]
    store.create(name, to_parquet(pa.Table.from_pylist(rows, SURVEY)))


def read_survey(
    store: Store, name: str, records_by_text: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The records of a survey, by the names of their sources.

    Args:
        store: where the survey is.
        name: its name.
        records_by_text: records by their JSON text, from surveys that were read before; those of this survey are added.

    Raises:
        Damaged: naming the file.
    """
    records_by_text = {} if records_by_text is None else records_by_text
    try:
        table = read_parquet(store.read(name))
        names, texts = table["name"].to_pylist(), table["record"].to_pylist()
        records_by_text |= {text: json.loads(text) for text in texts if text not in records_by_text}
        return {source: records_by_text[text] for source, text in zip(names, texts, strict=True)}
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        raise_damaged(error, f"{store.uri}/{name}")
        raise
