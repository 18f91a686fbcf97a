"""A part and its bytes: the round trip against float64, the views, and what a flipped bit does."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from concept_trak.store import codec, tables
from concept_trak.store.codec import Damaged, Footer, Part, Reject
from concept_trak.store.store import Store
from tests.store.parts import a_part
from tests.tolerances import STORED16

LAYOUTS = [("float16", "binary"), ("float32", "binary"), ("float32", "list"), ("int8", "binary")]
SMALLEST32 = 2.0**-149  # below it float32 has nothing: products of subnormal norms round to its multiples
texts = st.text(max_size=12)


def decoded(data: bytes) -> tuple[list[str], np.ndarray, np.ndarray]:
    blocks = list(codec.decode_blocks(data))
    ids = [sample_id for block in blocks for sample_id in block.ids]
    return ids, np.concatenate([block.weight for block in blocks]), np.concatenate([block.phi() for block in blocks])


def allowed(phi: np.ndarray, dtype: str) -> np.ndarray:
    """How far a stored row may be from itself, by theorem: half a unit of the last place, or half a step of int8, for
    each entry; among the smallest numbers of float32 the scale is rounded as well, by half of one times 127."""
    phi = phi.astype(np.float64)
    half = np.abs(phi).max(1, initial=0) / 254 * (1 + 1e-5) if dtype == "int8" else 0
    row = 0 if dtype == "int8" else {"float16": STORED16, "float32": 1e-6}[dtype] * np.linalg.norm(phi, axis=1)
    return row + np.sqrt(phi.shape[1]) * (half + 64 * SMALLEST32)


def relative_errors(found: np.ndarray, phi: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found.astype(np.float64) - phi, axis=1) / np.linalg.norm(phi, axis=1)


@pytest.mark.parametrize(("dtype", "encoding"), LAYOUTS)
def test_every_layout_returns_the_part(dtype: str, encoding: str):
    part = a_part(n=50)
    data = codec.encode_part(part, dtype, encoding, group_bytes=16 * 4 * 7)
    ids, weight, phi = decoded(data)
    assert ids == list(part.ids), "rows came back in another order, or were lost at a row group's edge"
    np.testing.assert_array_equal(weight, part.weight)
    assert np.all(np.linalg.norm(phi - part.phi.astype(np.float64), axis=1) <= allowed(part.phi, dtype))
    norms = np.linalg.norm((phi if dtype == "int8" else part.phi).astype(np.float64), axis=1)
    expected = Footer("f00d", "train-0-20", 50, float(sum(norms**2)), part.rejects, dtype, 16, encoding, "little")
    said = codec.decode_footer(data)
    assert said.sum_squares == pytest.approx(expected.sum_squares, rel=1e-6), "not Σ‖φ‖² of the rows as they stand"
    assert dataclasses.replace(said, sum_squares=0.0) == dataclasses.replace(expected, sum_squares=0.0)


def test_float16_with_scale_is_float64_to_a_thousandth_whatever_the_size_of_the_gradient():
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(121, 256)) * 10.0 ** np.linspace(-30, 30, 121)[:, None]
    part = dataclasses.replace(a_part(121), phi=phi.astype(np.float32))
    errors = relative_errors(decoded(codec.encode_part(part))[2], phi)
    assert errors.max() < STORED16, "float16 without its scale flushes small rows to zero and large ones to infinity"


def int8(phi: np.ndarray) -> codec.Block:
    (block,) = codec.decode_blocks(
        codec.encode_part(dataclasses.replace(a_part(len(phi)), phi=phi.astype(np.float32)), "int8")
    )
    return block


def test_int8_is_exact_where_255_steps_are_enough():
    """Whole numbers of which the largest is 127, times a power of two a row: nothing is left to round."""
    whole = np.random.default_rng(0).integers(-127, 128, (40, 33))
    whole[:, 7] = 127 * (-1) ** np.arange(40)
    phi = whole * 2.0 ** np.arange(-100, 100, 5)[:, None]
    block = int8(phi)
    np.testing.assert_array_equal(block.unit, whole)
    np.testing.assert_array_equal(block.phi(), phi, err_msg="scale is not the largest entry over 127")
    np.testing.assert_allclose(block.norms(), np.linalg.norm(phi, axis=1), rtol=1e-14)


def test_int8_rounds_alike_on_both_sides_of_zero_and_halves_to_the_even():
    phi = np.random.default_rng(0).normal(size=(20, 50))
    np.testing.assert_array_equal(int8(-phi).unit, -int8(phi).unit, err_msg="-phi is not stored as -unit")
    assert int8(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])).unit.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_what_int8_explains_bounds_what_it_did():
    phi = np.random.default_rng(0).standard_cauchy((60, 80))
    block = int8(phi)
    assert relative_errors(block.phi(), phi).max() <= block.rounding() < 0.2
    assert int8(np.zeros((3, 8))).rounding() == 0


def test_zero_rows_stay_zero_and_a_shard_of_rejects_is_a_part():
    phi = np.zeros((3, 8), np.float32)
    phi[1] = 1.0
    part = dataclasses.replace(a_part(3, 8), phi=phi)
    (block,) = codec.decode_blocks(codec.encode_part(part))
    assert block.scale[[0, 2]].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(block.phi()[[0, 2]], 0.0, err_msg="0/0 instead of a zero row")
    for dtype, encoding in LAYOUTS:
        empty = codec.encode_part(a_part(0, 8), dtype, encoding)
        assert list(codec.decode_blocks(empty)) == []
        assert (codec.decode_footer(empty).rows, len(codec.decode_footer(empty).rejects)) == (0, 2)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_part_survives(data: st.DataObject):
    n, k = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 9))
    finite = st.floats(-(2.0**120), 2.0**120, width=32)
    phi = data.draw(hnp.arrays(np.float32, (n, k), elements=finite))
    weight = data.draw(hnp.arrays(np.float32, n, elements=finite))
    ids = tuple(data.draw(st.lists(texts, min_size=n, max_size=n)))
    rejects = tuple(
        data.draw(st.lists(st.builds(Reject, texts, texts, st.integers(0, 1 << 40), texts, texts), max_size=3))
    )
    part = Part("f00d", data.draw(texts), ids, weight, phi, rejects)
    dtype, encoding = data.draw(st.sampled_from(LAYOUTS))
    encoded = codec.encode_part(part, dtype, encoding, group_bytes=data.draw(st.integers(1, 200)))
    said = codec.decode_footer(encoded)
    assert (said.rows, said.k, said.shard, said.rejects) == (n, k, part.shard, rejects)
    if n:
        found_ids, found_weight, found = decoded(encoded)
        assert found_ids == list(ids)
        np.testing.assert_array_equal(found_weight, weight)
        stored = "float32" if encoding == "list" else dtype
        assert np.all(np.linalg.norm(found - phi.astype(np.float64), axis=1) <= allowed(phi, stored))


@pytest.mark.parametrize(("dtype", "encoding"), LAYOUTS)
def test_same_part_same_bytes(dtype: str, encoding: str):
    assert codec.encode_part(a_part(), dtype, encoding) == codec.encode_part(a_part(), dtype, encoding)


@pytest.mark.parametrize(("dtype", "encoding"), LAYOUTS)
def test_feature_matrix_shares_arrows_memory_also_for_a_slice(dtype: str, encoding: str):
    part = a_part()
    table = pq.read_table(pa.BufferReader(codec.encode_part(part, dtype, encoding)))
    k, stored = int(table.schema.metadata[b"feature.k"]), table.schema.metadata[b"feature.dtype"].decode()
    sliced = table["feature"].slice(3, 5)
    (unit,) = codec.feature_matrices(sliced, k, stored)
    buffer = sliced.chunk(0).buffers()[-1]
    assert np.shares_memory(unit, np.frombuffer(buffer, np.uint8)), "the matrix was copied out of Arrow's buffer"
    phi = unit.astype(np.float32) * table["scale"].slice(3, 5).to_numpy()[:, None]
    assert np.all(np.linalg.norm(phi - part.phi[3:8].astype(np.float64), axis=1) <= allowed(part.phi[3:8], stored))


def test_blocks_are_views_of_row_groups_cut_by_bytes():
    part = a_part(n=50)
    blocks = list(codec.decode_blocks(codec.encode_part(part, "float16", group_bytes=16 * 2 * 20)))
    assert [len(block.ids) for block in blocks] == [20, 20, 10]
    assert not any(block.unit.flags.owndata for block in blocks), "a block copied its rows"
    assert {block.unit.dtype for block in blocks} == {np.dtype("float16")}


def test_feature_matrix_refuses_another_width():
    table = pq.read_table(pa.BufferReader(codec.encode_part(a_part())))
    with pytest.raises(ValueError, match=r"k=8 float16 needs fixed_size_binary\[16\].*feature\.k"):
        codec.feature_matrices(table["feature"], 8, "float16")


def test_every_flipped_byte_of_the_features_is_found():
    part = a_part(4, 8)
    data = codec.encode_part(part)
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(3)
    end = column.data_page_offset + column.total_compressed_size
    for position in range(end - 4 * 8 * 2, end):
        altered = bytearray(data)
        altered[position] ^= 1
        with pytest.raises(Damaged, match="train-0-20 is damaged"):
            list(codec.decode_blocks(bytes(altered)))


def test_truncated_and_foreign_bytes_are_no_part():
    data = codec.encode_part(a_part())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"sample_id": ["a"]}), sink)
    for other in (data[:-1], data[: len(data) // 2], b"", b"PAR1", sink.getvalue().to_pybytes()):
        with pytest.raises(Damaged, match="no part of this project, or a damaged one"):
            codec.decode_footer(other)


def test_a_footer_is_read_from_the_tail_alone(tmp_path):
    class Counting(Store):
        """A store that counts the bytes it reads."""

        count = 0

        def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
            data = super().read(name, start, end)
            self.count += len(data)
            return data

    store = Counting(str(tmp_path))
    part = a_part(2000, 256)
    store.create("part", codec.encode_part(part))
    assert codec.read_footer(store, "part") == codec.decode_footer(store.read("part", 0))
    store.count = 0
    codec.read_footer(store, "part")
    assert store.count <= tables.TAIL_BYTES
    wordy = dataclasses.replace(part, rejects=tuple(Reject("i", "s", row, "decode", "x" * 500) for row in range(400)))
    store.create("wordy", codec.encode_part(wordy))
    assert codec.read_footer(store, "wordy").rejects == wordy.rejects, "a footer longer than the first tail was cut"
    with pytest.raises(FileNotFoundError, match="absent"):
        codec.read_footer(store, "absent")


def test_refusals():
    n, k = 100, 240_000
    large = Part("f", "s", ("x",) * n, np.ones(n, np.float32), np.ones((n, k), np.float32), ())
    with pytest.raises(ValueError, match=r"at most 90 MB.*lower shard_rows"):
        codec.encode_part(large, "float32")
    with pytest.raises(ValueError, match=r"expected float16\|float32\|int8 and binary\|list"):
        codec.encode_part(a_part(), "bfloat16")
    for bad in (np.nan, np.inf):
        phi = a_part().phi.copy()
        phi[3, 3] = bad
        with pytest.raises(AssertionError, match="it is a reject, not a row"):
            codec.encode_part(dataclasses.replace(a_part(), phi=phi))
