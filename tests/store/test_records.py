"""Shards become done once: the loser adopts, the record is derived, what does not fit is refused by name."""

import dataclasses
import hashlib
import logging

import numpy as np
import pytest

from concept_trak.store import codec, records
from concept_trak.store.codec import Damaged, Part
from concept_trak.store.compaction import committed
from concept_trak.store.identity import FeatureSet
from concept_trak.store.records import Record, commit_part, derive_record
from concept_trak.store.store import Store
from tests.store.parts import a_part, planned

PART, RECORD = FeatureSet("f00d").part("train-0-20"), FeatureSet("f00d").record("train-0-20")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def commit(store: Store, part: Part, attempt: int = 1) -> Record:
    return commit_part(store, part, "float16", "binary", 1.5, attempt, f"host-{attempt}")


def nearly(part: Part, relative: float) -> Part:
    noise = np.random.default_rng(9).normal(size=part.phi.shape)
    noise *= relative * np.linalg.norm(part.phi, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return dataclasses.replace(part, phi=(part.phi + noise).astype(np.float32))


def test_a_commit_leaves_a_part_and_a_record_of_its_bytes(store: Store, tmp_path):
    part = a_part()
    record = commit(store, part)
    data = (tmp_path / PART).read_bytes()
    assert data == codec.encode_part(part)
    norms = np.linalg.norm(part.phi.astype(np.float64), axis=1)
    assert record == Record(
        shard="train-0-20",
        rows=20,
        rejected=2,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sum_squares=record.sum_squares,
        seconds=1.5,
        attempt=1,
        host="host-1",
        rejects_by_reason={"decode": 1, "no_direction": 1},
        fingerprint="f00d",
    )
    assert record.sum_squares == pytest.approx(np.sum(norms**2), rel=1e-6)
    assert store.names("") == [RECORD, PART]
    assert records.read_part(store, record) == data


def test_an_error_while_encoding_leaves_nothing(store: Store):
    phi = a_part().phi.copy()
    phi[0, 0] = np.nan
    with pytest.raises(AssertionError):
        commit(store, dataclasses.replace(a_part(), phi=phi))
    assert store.names("") == []


@pytest.mark.parametrize(("relative", "level"), [(0.0, "INFO"), (1e-4, "INFO"), (2e-2, "WARNING")])
def test_a_loser_adopts_and_says_how_far_it_is(store: Store, caplog, relative: float, level: str):
    first = commit(store, a_part())
    with caplog.at_level(logging.INFO):
        assert commit(store, nearly(a_part(), relative), attempt=2) == first, "the first part and record must stand"
    if relative == 0:
        assert caplog.records == [], "its own bytes: nothing is adopted"
        return
    (message,) = caplog.records
    assert message.levelname == level
    assert "adopted" in message.getMessage()
    difference = message.args[1]
    assert abs(difference - relative) < 1e-3, "the logged difference is not the relative row difference"


def test_rounding_of_storage_alone_is_within_the_named_tolerance(store: Store, caplog):
    part = a_part(n=300, k=64)
    commit_part(store, part, "float32", "binary", 0.0, 1, "a")
    with caplog.at_level(logging.INFO):
        commit_part(store, part, "float16", "binary", 0.0, 2, "b")
    assert caplog.records[0].levelname == "INFO"


def test_a_winner_with_other_samples_is_refused(store: Store):
    commit(store, a_part())
    ids = ("img-00", "other", *a_part().ids[2:])
    with pytest.raises(ValueError, match=r"first difference img-01.*first difference other.*Expected the same samples"):
        commit(store, dataclasses.replace(a_part(), ids=ids))
    with pytest.raises(ValueError, match=r"20 rows of k=16 .* computed 19 rows of k=16"):
        commit(store, a_part(n=19))
    with pytest.raises(ValueError, match=r"20 rows of k=16 .* computed 20 rows of k=8"):
        commit(store, a_part(k=8))


def test_parts_of_other_settings_are_never_mixed(store: Store):
    store.create(PART, codec.encode_part(a_part(fingerprint="beef")))
    with pytest.raises(ValueError, match=r"is shard train-0-20 of features beef; expected shard train-0-20 of f00d"):
        commit(store, a_part())
    with pytest.raises(ValueError, match="of features beef"):
        derive_record(store, FeatureSet("f00d"), "train-0-20")


def test_committed_derives_what_is_missing_and_keeps_the_order(store: Store):
    shards = ["c", "a", "b"]
    done = {shard: commit(store, a_part(shard=shard)) for shard in shards}
    store.delete(FeatureSet("f00d").record("a"))
    found = committed(store, FeatureSet("f00d"), planned("b", "not done", "a", "c"))
    assert list(found) == ["b", "a", "c"]
    assert found["b"] == done["b"]
    assert found["a"] == dataclasses.replace(done["a"], seconds=0.0, attempt=0, host="")
    assert committed(store, FeatureSet("f00d"), planned(*shards))["a"] == found["a"], "the derived record must stand"
    assert committed(store, FeatureSet("0000"), planned(*shards)) == {}


def test_a_shard_committed_between_two_listings_is_done(tmp_path):
    class Between(Store):
        """A store on which another worker commits a shard after every listing of records or parts."""

        def names(self, folder: str) -> list[str]:
            found = super().names(folder)
            commit(Store(self.uri), a_part())
            return found

        def versions(self, folder: str) -> dict[str, str]:
            found = super().versions(folder)
            commit(Store(self.uri), a_part())
            return found

    done = committed(Between(str(tmp_path)), FeatureSet("f00d"), planned("train-0-20"))
    assert done["train-0-20"].host == "host-1", (
        "records must be listed before parts, or a record seems to lack its part"
    )


def test_a_record_without_its_part_is_named(store: Store):
    commit(store, a_part())
    store.delete(PART)
    with pytest.raises(
        ValueError, match=r"1 of 1 shards have a record but no part, first .*train-0-20.parquet.*repair"
    ):
        committed(store, FeatureSet("f00d"), planned("train-0-20"))


def test_every_flipped_byte_and_every_truncation_is_found_before_use(store: Store):
    record = commit(store, a_part(n=4, k=4))
    data = store.read(PART)
    altered = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 7)]
    for other in [*altered, data[:-1], b""]:
        store.replace(PART, other)
        with pytest.raises(Damaged, match=r"train-0-20.parquet was truncated or altered.*repair=true"):
            records.read_part(store, record)


def test_damage_is_found_while_a_record_is_derived(store: Store):
    data = codec.encode_part(a_part())
    store.create(PART, data[: len(data) // 2])
    with pytest.raises(Damaged, match=r"train-0-20.parquet: no part of this project.*repair=true"):
        derive_record(store, FeatureSet("f00d"), "train-0-20")
    said = repr(codec.decode_footer(data).sum_squares).encode()
    store.replace(PART, data.replace(said, said[:-1] + (b"1" if said[-1:] != b"1" else b"2")))
    with pytest.raises(Damaged, match="and its footer has"):
        derive_record(store, FeatureSet("f00d"), "train-0-20")


def test_a_record_that_is_no_record_is_named(store: Store):
    commit(store, a_part())
    for other in (b"{", b"[]", b'{"shard": "train-0-20"}'):
        store.replace(RECORD, other)
        with pytest.raises(Damaged, match=r"commits/train-0-20.json is damaged"):
            committed(store, FeatureSet("f00d"), planned("train-0-20"))


def test_a_part_that_changed_under_its_record_is_refused(store: Store):
    commit(store, a_part())
    store.replace(PART, codec.encode_part(a_part(seed=1)))
    with pytest.raises(Damaged, match="was truncated or altered"):
        derive_record(store, FeatureSet("f00d"), "train-0-20")
