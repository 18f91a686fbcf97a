"""K on storage."""

import json

import numpy as np
import pytest
from safetensors.numpy import load

from concept_trak.store import grams
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def a_gram(seed: int = 0) -> np.ndarray:
    phi = np.random.default_rng(seed).normal(size=(30, 8))
    return (phi.T @ phi).astype(np.float32)


def test_a_gram_comes_back_and_stands(store: Store):
    grams.write_gram(store, FeatureSet("f00d"), "group-0", a_gram(), 30)
    grams.write_gram(store, FeatureSet("f00d"), "group-0", a_gram(1), 30)
    k_matrix, count = grams.read_gram(store, FeatureSet("f00d"), "group-0")
    np.testing.assert_array_equal(k_matrix, a_gram(), err_msg="the second write replaced the first")
    assert count == 30
    assert store.names("") == ["features/f00d/grams/group-0.safetensors"]


def test_any_safetensors_reader_sees_it_and_the_bytes_are_always_the_same():
    encoded = {grams.encode_gram(a_gram(), 30) for _ in range(20)}
    assert len(encoded) == 1, "safetensors orders metadata by a hash that varies"
    (data,) = encoded
    np.testing.assert_array_equal(load(data)["K"], a_gram())
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert metadata["count"] == "30"
    assert float(metadata["trace"]) == pytest.approx(np.trace(a_gram().astype(np.float64)), rel=1e-12)


def test_another_sum_under_the_same_name_is_refused(store: Store):
    grams.write_gram(store, FeatureSet("f00d"), "group-0", a_gram(), 30)
    with pytest.raises(ValueError, match=r"sums 30 rows of width 8; this attempt summed 31 rows of width 8\. Expected"):
        grams.write_gram(store, FeatureSet("f00d"), "group-0", a_gram(), 31)


def test_damage_is_found(store: Store):
    name = FeatureSet("f00d").gram("group-0")
    data = grams.encode_gram(a_gram(), 30)
    for other in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data[:4], b""):
        store.replace(name, other)
        with pytest.raises(Damaged, match=r"group-0.safetensors: .*remove the file: it is computed again"):
            grams.read_gram(store, FeatureSet("f00d"), "group-0")
    with pytest.raises(FileNotFoundError):
        grams.read_gram(store, FeatureSet("f00d"), "group-1")
