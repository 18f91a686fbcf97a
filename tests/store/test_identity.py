"""Which features are the same."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from concept_trak.store.identity import (
    FEATURE_SET,
    GRAM,
    PART,
    RECORD,
    FeatureFile,
    FeatureSet,
    FeatureSettings,
    feature_file,
    file_digest,
    fingerprint,
    open_feature_set,
    read_feature_settings,
    setting_differences,
)
from concept_trak.store.store import Store

SETTINGS = {"model": "abc", "projector": {"kind": "sketch", "dim": 4096}, "times": (100, 200), "seed": 0}
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.dictionaries(
    st.text(), st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
)


def test_fingerprint_is_sha256_of_canonical_json():
    canonical = '{"model":"abc","projector":{"dim":4096,"kind":"sketch"},"seed":0,"times":[100,200]}'
    assert fingerprint(SETTINGS) == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@given(values)
def test_fingerprint_survives_a_file_and_the_order_of_keys(settings: dict):
    shuffled = dict(reversed(settings.items()))
    assert fingerprint(json.loads(json.dumps(shuffled))) == fingerprint(settings)
    assert setting_differences(settings, shuffled) == []


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"seed": 0.0}, {"projector": {"kind": "sketch", "dim": 2048}}, {"new": None}]
)
def test_every_change_changes_the_fingerprint(change: dict):
    assert fingerprint(SETTINGS | change) != fingerprint(SETTINGS)


@pytest.mark.parametrize("value", [np.float32(1), float("nan"), b"bytes", {1: "a"}, {1, 2}, object()])
def test_values_that_are_not_json_are_refused(value: object):
    with pytest.raises(ValueError, match=r"settings\.a\[0\] is .* which JSON cannot hold\. Expected .*convert"):
        fingerprint({"a": [value]})


def test_differences_name_dotted_keys_and_both_sides():
    theirs = {"model": "abc", "projector": {"kind": "sketch", "dim": 2048}, "times": [100, 200, 300]}
    assert setting_differences(SETTINGS | {"seed": 7}, theirs) == [
        "projector.dim: 4096 here, 2048 there",
        "seed: 7 here, nothing there",
        "times: [100, 200] here, [100, 200, 300] there",
    ]
    ours = {"concepts": [{"name": "a"}, {"name": "b", "seed": 1}], "empty": {}}
    theirs = {"concepts": [{"name": "a"}, {"name": "c", "seed": 1}], "empty": {}}
    assert setting_differences(ours, theirs) == ['concepts.1.name: "b" here, "c" there']


def test_an_existing_feature_set_fixes_shard_rows(tmp_path):
    store = Store(str(tmp_path))
    first = open_feature_set(store, SETTINGS, 64)
    assert first == FeatureSettings(json.loads(json.dumps(SETTINGS)), 64)
    assert open_feature_set(store, SETTINGS, 1024) == first, "shards cut anew would share no name with those that exist"
    features = FeatureSet.of(SETTINGS)
    assert store.names("") == [features.settings_file] == [f"features/{fingerprint(SETTINGS)}/feature_set.json"]
    assert read_feature_settings(store, features) == first


def test_names_of_a_feature_set_are_taken_apart_as_they_were_built():
    features = FeatureSet("f00d")
    for name, file in {
        features.settings_file: FeatureFile(features, FEATURE_SET, ""),
        features.part("a.parquet-0"): FeatureFile(features, PART, "a.parquet-0"),
        features.record("a.json"): FeatureFile(features, RECORD, "a.json"),
        features.gram("g"): FeatureFile(features, GRAM, "g"),
    }.items():
        assert feature_file(name) == file
    assert features.part("a") == "features/f00d/parts/a.parquet", "the layout that other tools read"
    assert features.record("a") == "features/f00d/commits/a.json"
    assert features.gram("a") == "features/f00d/grams/a.safetensors"
    for name in ("features/f00d/parts/a.json", "features/f00d/notes", "states/f00d/a.safetensors", "features"):
        assert feature_file(name) is None
    with pytest.raises(AssertionError):
        features.part("../x")


def test_other_settings_under_one_fingerprint_are_refused(tmp_path):
    store = Store(str(tmp_path))
    name = f"features/{fingerprint(SETTINGS)}/feature_set.json"
    store.replace(name, json.dumps({"settings": SETTINGS | {"seed": 7}, "shard_rows": 64}).encode())
    with pytest.raises(ValueError, match=r"other settings than its name says: seed: 0 here, 7 there\. Expected"):
        open_feature_set(store, SETTINGS, 64)
    store.replace(name, b'{"settings": ')
    with pytest.raises(ValueError, match=r"is damaged .* restore the file, or choose another store"):
        open_feature_set(store, SETTINGS, 64)
    with pytest.raises(ValueError, match=r"shard_rows=0: expected at least 1 row"):
        open_feature_set(store, SETTINGS, 0)


def test_file_digest_is_sha256(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "weights").write_bytes(data)
    assert file_digest(tmp_path / "weights") == hashlib.sha256(data).hexdigest()
