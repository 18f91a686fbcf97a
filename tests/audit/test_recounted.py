"""What is derived from a whole listing, the frequent words and that ids are unique, is counted again by `verify`."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from concept_trak.audit import heavy_groups as counting
from concept_trak.audit import unique_ids
from concept_trak.audit.heavy_groups import count_tasks, heavy_groups, most_frequent
from concept_trak.audit.index import open_data
from concept_trak.audit.index_verification import verify_indices
from concept_trak.audit.mapper import serial
from concept_trak.config import DataConfig
from concept_trak.data.ids import encode_ids, id_digests
from concept_trak.data.inventory import Survey
from concept_trak.store import sources
from concept_trak.store.sources import SourceSet
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet, to_parquet
from tests.data.files import rows, write

MOST = 6


@pytest.fixture(params=[sources.ROW_GROUP, 2], ids=["one row group", "several row groups"])
def indexed(tmp_path, monkeypatch, request) -> tuple[Store, DataConfig, Survey]:
    """Three files whose captions have more words than are kept, indexed, with what is derived from them."""
    monkeypatch.setattr(sources, "ROW_GROUP", request.param)
    monkeypatch.setattr(counting, "MOST_GROUPS", MOST)
    monkeypatch.setattr(counting, "SOURCES_AT_ONCE", 1)
    monkeypatch.setattr(unique_ids, "BUCKET_IDS", 4)
    for n, words in enumerate((["a b", "a c", "a d e", "f"], ["a g", "b h", "i j"], ["k", "l m", "b a", "n o p"])):
        captions = {"caption": words, "shape": [f"s{n}"] * len(words)}
        write(tmp_path / f"data/{n}.parquet", rows(len(words), first=10 * n, **captions))
    data = DataConfig(str(tmp_path / "data"), id_column="id", label_columns=("shape",))
    store = Store(str(tmp_path / "store"))
    survey = open_data(store, data, "text", serial)
    assert heavy_groups(store, data, survey, serial)
    return store, data, survey


def damaged(store: Store) -> list[str]:
    return [f.name.split("/", 2)[2] for f in verify_indices(store) if f.damage]


def derived(store: Store, kind: str) -> str:
    (name,) = (name for name in store.names("sources") if f"/{kind}/" in name)
    return name


def test_what_is_right_is_sound_and_was_looked_at(indexed):
    store, _, _ = indexed
    findings = {f.name for f in verify_indices(store) if not f.damage}
    assert {derived(store, "heavy"), derived(store, "unique")} <= findings
    assert damaged(store) == []


def test_another_count_is_found(indexed):
    store, _, _ = indexed
    name = derived(store, "heavy")
    table = read_parquet(store.read(name))
    store.replace(name, to_parquet(table.set_column(3, "samples", pa.array([7] * table.num_rows, pa.int64()))))
    assert damaged(store) == [name.split("/", 2)[2]]


def test_an_id_that_came_to_occur_twice_is_found(indexed, tmp_path):
    """The digests and the index of one source are replaced by another's, with records that agree."""
    store, _, survey = indexed
    sources = SourceSet(derived(store, "unique").split("/")[1])
    first, _, third = (Path(source.stored[0].name).stem for source in survey.sources)
    ids = read_parquet(store.read(sources.index(first)))["id"].to_pylist()
    table = read_parquet(store.read(sources.index(third)))
    forged = to_parquet(table.set_column(1, "id", pa.array(ids, pa.string())))
    record = json.loads(store.read(sources.record(third)))
    store.replace(sources.index(third), forged)
    store.replace(sources.ids(third), encode_ids(id_digests(ids)))
    store.replace(sources.record(third), json.dumps(record | checksum(forged)).encode())
    assert damaged(store) == [derived(store, "unique").split("/", 2)[2]]


def checksum(data: bytes) -> dict[str, object]:
    from hashlib import sha256

    return {"bytes": len(data), "sha256": sha256(data).hexdigest()}


@pytest.mark.parametrize("folder", ["", "ids/", "surveys/"])
def test_nothing_is_counted_where_a_source_is_gone(indexed, folder):
    """What is missing is made again when it is needed; a wrong count in a file beside it is another matter."""
    store, _, survey = indexed
    stem = Path(survey.sources[0].stored[0].name).stem if folder != "surveys/" else ""
    base = derived(store, "heavy").rpartition("heavy/")[0]
    (name,) = (n for n in store.names(f"{base}{folder}".rstrip("/")) if n.startswith(f"{base}{folder}{stem}")
               and "/" not in n.removeprefix(f"{base}{folder}"))  # fmt: skip
    store.delete(name)
    assert damaged(store) == []


def test_the_order_in_which_workers_end_decides_nothing(indexed):
    store, data, survey = indexed
    expected = store.read(derived(store, "heavy"))
    store.delete(derived(store, "heavy"))

    def backwards(stage, worker, settings, tasks):
        return reversed(list(serial(stage, worker, settings, tasks)))

    heavy_groups(store, data, survey, backwards)
    assert store.read(derived(store, "heavy")) == expected
    tasks = count_tasks([source.stored[0].name for source in survey.sources])
    assert len(tasks) == 3
    shares = [counting.count_indices(store, task, ["words", "label.shape"]) for task in tasks]
    assert not most_frequent(reversed(shares)).equals(most_frequent(shares)), "any order gives the same: no proof"
