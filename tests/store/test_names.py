"""The Parquet file of a part as others see it: columns, pages, and readers that know nothing of this project."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak.store import codec
from concept_trak.store.codec import Part
from tests.store.parts import a_part


def test_the_file_is_laid_out_as_documented():
    metadata = pq.read_metadata(pa.BufferReader(codec.encode_part(a_part())))
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(4)}
    assert list(columns) == ["sample_id", "weight", "scale", "feature"]
    assert {column.compression for column in columns.values()} == {"UNCOMPRESSED"}
    assert not any("DICTIONARY" in encoding for column in columns.values() for encoding in column.encodings)
    assert {name: column.is_stats_set for name, column in columns.items()}["feature"] is False
    assert columns["sample_id"].statistics.max == "img-19"
    schema = pq.read_schema(pa.BufferReader(codec.encode_part(a_part())))
    assert [field.type for field in schema] == [pa.string(), pa.float32(), pa.float32(), pa.binary(32)]
    assert not any(field.nullable for field in schema)


def test_list_layout_has_one_page_per_row_group_however_many_rows():
    n, k = 30_000, 64  # Arrow would cut pages at 20,000 rows and at 1 MB
    part = Part("f00d", "s", ("x",) * n, np.ones(n, np.float32), np.ones((n, k), np.float32), ())
    data = codec.encode_part(part, encoding="list")
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(3)
    page = data[column.data_page_offset : column.data_page_offset + 12]
    size, shift, at = 0, 0, 3  # thrift compact: field 1 (type) takes two bytes, then field 2's mark, then a varint
    while True:
        size, shift = size | (page[at] & 127) << shift, shift + 7
        if page[at] < 128:
            break
        at += 1
    assert size // 2 >= n * k * 4, "the first page does not hold the whole row group"


def test_other_readers_see_plain_columns(tmp_path):
    part = a_part()
    (tmp_path / "binary.parquet").write_bytes(codec.encode_part(part))
    (tmp_path / "list.parquet").write_bytes(codec.encode_part(part, encoding="list"))
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT sample_id, weight, scale FROM '{tmp_path}/binary.parquet'").fetchall()
        first = [float(number) for number in part.phi[0]]
        products = connection.execute(
            f"SELECT scale * list_inner_product(feature, ?::FLOAT[]) FROM '{tmp_path}/list.parquet'", [first]
        ).fetchall()
    assert [row[0] for row in rows] == list(part.ids)
    np.testing.assert_array_equal(np.array([row[1] for row in rows], np.float32), part.weight)
    expected = part.phi.astype(np.float64) @ part.phi[0].astype(np.float64)
    scale = np.linalg.norm(part.phi, axis=1) * np.linalg.norm(part.phi[0])
    assert np.max(np.abs(np.array(products)[:, 0] - expected) / scale) < 1e-6
