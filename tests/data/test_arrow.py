"""Parquet as other tools write it: every Arrow type of text and images, folders as columns, and large row groups."""

import gc
import io
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem

from concept_trak import UserError
from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data import parquet
from concept_trak.data.index import label_values
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from concept_trak.store.part import Reject
from tests.data import files
from tests.data.files import IMAGE, encoded, noise
from tests.data.inputs import PNG, structs, table

CAPTIONS = ["a red square", "a blue circle", None]
TEXTS = {
    "string_view": pa.array(CAPTIONS, pa.string_view()),
    "large_string": pa.array(CAPTIONS, pa.large_string()),
    "dictionary": pa.array(CAPTIONS).dictionary_encode(),
    "dictionary of large": pa.array(CAPTIONS, pa.large_string()).dictionary_encode(),
    "list": pa.array([[c] for c in CAPTIONS], pa.list_(pa.string())),
    "large list of views": pa.array([[c] for c in CAPTIONS], pa.large_list(pa.string_view())),
    "fixed list": pa.array([[c, None] for c in CAPTIONS], pa.list_(pa.string(), 2)),
    "list view": pa.array([[c] for c in CAPTIONS], pa.list_view(pa.string())),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(CAPTIONS)),
}


def read(data: DataConfig) -> list[Sample | Reject]:
    plan = shards(survey(data).sources, data.shard_rows)
    return [row for shard in plan for row in samples(shard, data, 4)]


@pytest.mark.parametrize("kind", TEXTS)
def test_captions_of_every_type_of_text(kind, tmp_path):
    *good, bad = read(table(tmp_path, image=structs(3), caption=TEXTS[kind]))
    assert [row.caption for row in good if isinstance(row, Sample)] == CAPTIONS[:2]
    assert isinstance(bad, Reject)
    assert bad.reason == "no_caption"


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary"])
def test_ids_and_labels_of_every_type_of_text(kind, tmp_path):
    ids = (
        pa.array(["x", "y"]).dictionary_encode() if kind == "dictionary" else pa.array(["x", "y"], getattr(pa, kind)())
    )
    table(tmp_path, image=structs(2), caption=["a", "b"], id=ids, label=ids)
    data = DataConfig(str(tmp_path), id_column="id", label_columns=("label",))
    assert [(row.id, row.labels) for row in read(data) if isinstance(row, Sample)] == [
        ("x", {"label": "x"}), ("y", {"label": "y"})
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [pa.array([b"1", b"2"]), pa.array([1.5, 2.5]), pa.array([True, False]),
                                 pa.array([bytes(16), bytes(range(16))], pa.uuid())], ids=str)  # fmt: skip
def test_ids_that_are_no_text_are_refused(ids, tmp_path):
    table(tmp_path, image=structs(2), caption=["a", "b"], id=ids)
    with pytest.raises(UserError, match=r"data\.id_column='id' holds .*; expected strings or integers"):
        read(DataConfig(str(tmp_path), id_column="id"))


BYTES = [
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(PNG)), IMAGE),
    pa.struct({"bytes": pa.large_binary(), "path": pa.string_view()}),
    pa.struct({"path": pa.string(), "bytes": pa.binary(), "size": pa.int32()}),
]
NO_IMAGES = [
    pa.array([[{"bytes": PNG, "path": ""}]], pa.list_(IMAGE)),
    *(pa.array(["a.png"]), pa.array([5]), pa.array([{"path": "a.png"}])),
]


@pytest.mark.parametrize("kind", BYTES, ids=str)
def test_images_of_every_type_of_bytes(kind, tmp_path):
    image = {"bytes": PNG, "path": "a.png", "size": 3} if pa.types.is_struct(kind) else PNG
    good, bad = read(table(tmp_path, image=pa.array([image, None], kind), caption=["a", "b"]))
    assert isinstance(good, Sample)
    assert isinstance(bad, Reject)
    assert bad.reason == "decode"


@pytest.mark.parametrize("image", NO_IMAGES, ids=lambda column: str(column.type))
def test_columns_that_are_no_images_are_refused(image, tmp_path):
    with pytest.raises(UserError, match=r"data\.image_column='image' is .*; expected struct<bytes: binary"):
        read(table(tmp_path, image=image, caption=["a"]))


def test_paths_without_images_are_rejects_or_a_refusal(tmp_path):
    images = [{"bytes": PNG, "path": None}, {"bytes": None, "path": "/abs/a\n.png"}, None, {"bytes": b"", "path": "b"}]
    _, path, null, empty = read(table(tmp_path, image=pa.array(images, IMAGE), caption=["a"] * 4))
    assert isinstance(path, Reject)
    assert (path.reason, path.message) == (
        "not_embedded", "there is only the path /abs/a .png, and no image; embed the images"
    )  # fmt: skip
    assert [row.reason for row in (null, empty) if isinstance(row, Reject)] == ["decode", "decode"]
    with pytest.raises(UserError, match=r"holds paths only, and no image; embed the images"):
        read(table(tmp_path, image=pa.array(images[1:3], IMAGE), caption=["a"] * 2))


def test_folders_are_columns_and_a_column_of_the_file_counts_before_them(tmp_path):
    table(tmp_path, "label=cat/year=2020/0.parquet", image=structs(1), caption=["a"])
    table(tmp_path, "label=d%20og/year=__HIVE_DEFAULT_PARTITION__/0.parquet", image=structs(1), caption=["a"])
    table(tmp_path, "label=x/year=1/0.parquet", image=structs(1), caption=["a"], label=["own"])
    data = DataConfig(str(tmp_path), label_columns=("label", "year"))
    assert [row.labels for row in read(data) if isinstance(row, Sample)] == [
        {"label": "cat", "year": "2020"}, {"label": "d og"}, {"label": "own", "year": "1"}
    ]  # fmt: skip
    found = [labels for shard in shards(survey(data).sources, 2) for _, labels in label_values(shard)]
    assert found[0] == {"label": "cat", "year": "2020"}
    only = DataConfig(str(tmp_path), caption_column="label", label_columns=("year",))
    assert [row.caption for row in read(only) if isinstance(row, Sample)] == ["cat", "d og", "own"]


def test_text_that_is_not_utf8_is_one_reject(tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 3, pa.array([b"fine", b"un carr\xe9", b"too"]).buffers())
    first, bad, last = read(table(tmp_path, image=structs(3), caption=wrong))
    assert isinstance(bad, Reject)
    assert (bad.reason, bad.row) == ("text", 1)
    assert [row.caption for row in (first, last) if isinstance(row, Sample)] == ["fine", "too"]


class Counting(AbstractFileSystem):
    """A file system with one file, that counts the bytes which are read."""

    protocol = "counting"
    content, count = b"", 0

    def ls(self, path, detail=True, **options):
        return [{"name": "data/a.parquet", "size": len(self.content), "type": "file", "mtime": 1}]

    def _open(self, path, *arguments, **options):
        return Tap(self.content)


class Tap(io.BytesIO):
    def read(self, size=-1):
        data = super().read(size)
        Counting.count += len(data)
        return data


@pytest.fixture
def one_group(monkeypatch):
    """400 pictures of 6 kB in one row group; the value is the size of the file."""
    fsspec.register_implementation("counting", Counting, clobber=True)
    out = io.BytesIO()
    images = [{"bytes": encoded(noise(45, 45, n)), "path": ""} for n in range(400)]
    columns = {"image": pa.array(images, IMAGE), "caption": [f"caption {n}" for n in range(400)]}
    pq.write_table(
        pa.table(columns), out, row_group_size=400, data_page_size=20_000, write_batch_size=8, use_dictionary=False
    )
    monkeypatch.setattr(Counting, "content", out.getvalue())
    return len(out.getvalue())


def test_a_large_row_group_is_read_piece_by_piece_to_the_end_of_the_shard(one_group, monkeypatch):
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 1 << 14)
    data = DataConfig("counting://data/a.parquet", shard_rows=20)
    plan = shards(survey(data).sources, 20)
    sizes = []
    for shard in (plan[0], plan[9], plan[19]):
        Counting.count = 0
        assert [s.caption for s in samples(shard, data, 4) if isinstance(s, Sample)] == [
            f"caption {n}" for n in range(shard.first_row, shard.first_row + 20)
        ]
        sizes.append(Counting.count / one_group)
    assert sizes[0] < 0.2, "the whole row group is read for its first rows"
    assert sizes[1] < 0.7
    assert sizes[2] < 1.2


def test_rows_too_large_to_be_read_together_are_read_one_by_one(one_group, monkeypatch):
    """Arrow allows 2 GiB of a column in one batch; here two rows are refused together."""
    batches = pq.ParquetFile.iter_batches

    def limited(self, batch_size, **options):
        if batch_size > 1:
            yield next(batches(self, batch_size, **options))
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        yield from batches(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", limited)
    data = DataConfig("counting://data/a.parquet", shard_rows=300)
    captions = [row.caption for row in read(data) if isinstance(row, Sample)]
    assert captions == [f"caption {n}" for n in range(400)]


def test_memory_for_rows_is_bounded_by_bytes_and_not_by_their_number(one_group, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100_000)
    seen = []
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, n, **o: (seen.append(n), batches(self, n, **o))[1])
    assert len(read(DataConfig("counting://data/a.parquet", shard_rows=400))) == 400
    assert 8 <= seen[0] <= 20


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_more_than_two_gigabytes_of_a_column_in_one_row_group(tmp_path):
    """Three pictures of 800 MiB, which are none: three rejects, and the row after them is read."""
    large = pa.array([{"bytes": b"\xff\xd8" + bytes(800 << 20), "path": "x"}], IMAGE)
    column = pa.chunked_array([large] * 3 + [structs(1)])
    pq.write_table(pa.table({"image": column, "caption": ["a"] * 4}), tmp_path / "a.parquet", row_group_size=4)
    del large, column
    gc.collect()
    reasons = [getattr(row, "reason", "sample") for row in read(DataConfig(str(tmp_path)))]
    assert reasons == ["decode"] * 3 + ["sample"]


def test_a_file_cut_off_while_it_is_read_is_named(tmp_path):
    data = table(tmp_path, image=structs(4), caption=["a"] * 4)
    (shard,) = shards(survey(data).sources, 8)
    Path(tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a\.parquet changed while the audit ran: .* now gone; start a new audit"):
        list(samples(shard, data, 4))


def test_a_file_without_rows_among_others_is_no_mistake(tmp_path):
    table(tmp_path, "a.parquet", image=structs(1), caption=["a"])
    table(tmp_path, "b.parquet", image=pa.array([], IMAGE), caption=pa.array([], pa.string()))
    assert len(read(DataConfig(str(tmp_path)))) == 1
    assert files.plan(DataConfig(str(tmp_path)))
