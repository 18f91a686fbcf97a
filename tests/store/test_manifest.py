"""An audit's files: fixed when it begins, listed with their hashes when it ends."""

import hashlib
import json

import duckdb
import pyarrow as pa
import pytest
import yaml

from concept_trak.store import manifest
from concept_trak.store.manifest import Audit, read_settings, write_bytes
from concept_trak.store.part import Damaged
from concept_trak.store.records import commit_part
from concept_trak.store.store import Store
from tests.store.parts import a_part

CONFIG = {
    "damping": 100.0,
    "projector": {"dim": 4096},
    "concepts": [{"name": "red", "seed": 0}],
    "small": 1e-20,
    "labels": {"\x85": None, "ピカチュウ": "yes: #1"},
}
PLAN = [
    {"shard": "a-0-64", "source": "a.parquet", "version": "v1", "first_row": 0, "rows": 64},
    {"shard": "a-64-90", "source": "a.parquet", "version": "v1", "first_row": 64, "rows": 26},
    {"shard": "b-0-64", "source": "b.parquet", "version": "v1", "first_row": 0, "rows": 64},
]


@pytest.fixture
def audit(tmp_path) -> Audit:
    return Audit(Store(str(tmp_path)), "demo")


def test_begin_writes_configuration_and_plan_and_resumes(audit: Audit, tmp_path):
    manifest.begin_audit(audit, CONFIG, PLAN)
    manifest.begin_audit(audit, CONFIG, pa.Table.from_pylist(PLAN))
    assert audit.store.names("") == ["audits/demo/audit.yaml", "audits/demo/plan.parquet"]
    assert yaml.safe_load((tmp_path / "audits/demo/audit.yaml").read_text()) == CONFIG
    assert manifest.read_plan(audit) == PLAN
    with duckdb.connect() as connection:
        total = connection.execute(f"SELECT sum(rows) FROM '{tmp_path}/audits/demo/plan.parquet'").fetchone()
    assert total == (154,)


def test_a_killed_begin_is_completed(audit: Audit):
    manifest.begin_audit(audit, CONFIG, PLAN)
    audit.store.delete(audit.name("plan.parquet"))
    manifest.begin_audit(audit, CONFIG, PLAN)
    assert manifest.read_plan(audit) == PLAN


def test_other_settings_are_refused_with_the_keys_named(audit: Audit):
    manifest.begin_audit(audit, CONFIG, PLAN)
    other = CONFIG | {"damping": 10.0, "concepts": [{"name": "blue", "seed": 0}]}
    with pytest.raises(ValueError, match="begun with other settings") as error:
        manifest.begin_audit(audit, other, PLAN)
    assert 'concepts.0.name: "blue" here, "red" there; damping: 10.0 here, 100.0 there. Resume' in str(error.value)
    assert "same settings or choose another audit=" in str(error.value)


@pytest.mark.parametrize("unset", ["", None, False, 0, 0.0, [], {}])
def test_an_audit_that_was_begun_before_a_setting_existed_resumes(audit: Audit, unset):
    manifest.begin_audit(audit, CONFIG, PLAN)
    later = CONFIG | {"offload": unset, "concepts": [{"name": "red", "seed": 0, "image": unset}]}
    manifest.begin_audit(audit, later, PLAN)
    with pytest.raises(ValueError, match=r'concepts\.0\.image: "a\.png" here, nothing there'):
        manifest.begin_audit(audit, later | {"concepts": [{"name": "red", "seed": 0, "image": "a.png"}]}, PLAN)
    with pytest.raises(ValueError, match="begun with other settings: small: nothing here"):
        manifest.begin_audit(audit, {key: value for key, value in later.items() if key != "small"}, PLAN)


def changed(row: int, **values: object) -> list[dict]:
    return [entry | values if index == row else entry for index, entry in enumerate(PLAN)]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (PLAN[:2], r"b\.parquet \(version v1\) left\. Expected the 3 shards"),
        (changed(2, version="v2"), r"b\.parquet \(version v1\) left; b\.parquet \(version v2\) is new"),
        ([*PLAN, PLAN[2] | {"shard": "c-0-64", "source": "c.parquet"}], r"c\.parquet \(version v1\) is new"),
        (changed(1, rows=25), r"the same sources are cut into other shards"),
    ],
)
def test_another_plan_is_refused_with_the_sources_named(audit: Audit, plan: list[dict], says: str):
    manifest.begin_audit(audit, CONFIG, PLAN)
    with pytest.raises(ValueError, match=f"{says}.*start a new audit"):
        manifest.begin_audit(audit, CONFIG, plan)
    assert manifest.read_plan(audit) == PLAN


@pytest.mark.parametrize(
    "secret",
    [
        {"data": {"uri": "https://user:hunter2@host/train.parquet"}},
        {"sources": ["s3://key:hunter2/x@bucket"]},
        {"storage": {"aws_secret_access_key": "hunter2"}},
        {"hf_token": "hunter2"},
        {"password": "hunter2"},
    ],
)
def test_secrets_never_reach_a_file(audit: Audit, secret: dict):
    with pytest.raises(ValueError, match="environment") as error:
        manifest.begin_audit(audit, CONFIG | secret, PLAN)
    assert "hunter2" not in str(error.value)
    assert audit.store.names("") == []


def test_words_that_only_resemble_secrets_pass(audit: Audit):
    innocent = {"tokenizer": "clip", "max_tokens": 77, "keys": ["a"], "uri": "http://host:8000/train@v2", "k": "a@b"}
    manifest.begin_audit(audit, CONFIG | innocent, PLAN)


def test_what_stands_wins_over_a_second_driver(audit: Audit):
    first, second = pa.table({"score": [1.0]}), pa.table({"score": [1.0 + 1e-7]})
    assert manifest.write_table(audit, "scores/a.parquet", first)
    assert manifest.write_table(audit, "scores/a.parquet", first), "same table, same bytes"
    assert not manifest.write_table(audit, "scores/a.parquet", second)
    assert manifest.read_table(audit, "scores/a.parquet") == first
    assert manifest.write_json(audit, "metrics.json", {"p": 1})
    assert not manifest.write_json(audit, "metrics.json", {"p": 2})


def test_the_manifest_lists_what_stands(audit: Audit, tmp_path):
    record = commit_part(audit.store, a_part(), "float16", "binary", 1.0, 1, "host")
    manifest.begin_audit(audit, CONFIG, PLAN)
    manifest.write_bytes(audit, "report.html", b"<html>")
    manifest.write_progress(audit, {"done": 1})
    manifest.write_progress(audit, {"done": 2})
    files = ["report.html", "plan.parquet", "audit.yaml"]
    assert manifest.read_manifest(audit) is None, "an audit is unfinished until its manifest stands"
    written = manifest.finish_audit(audit, files, [record], {"fingerprint": "f00d"})
    assert written == manifest.read_manifest(audit)
    assert list(written["files"]) == sorted(files)
    listed = [(f"audits/demo/{name}", entry) for name, entry in written["files"].items()]
    listed += [(entry["name"], entry) for entry in written["parts"]]
    assert len(listed) == 4
    for name, entry in listed:
        data = (tmp_path / name).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()), name
    assert written["settings"] == {"fingerprint": "f00d"}
    latest = json.loads((tmp_path / "audits/latest.json").read_text())
    assert latest == {"audit": "demo", "finished": written["finished"]}
    assert json.loads((tmp_path / "audits/demo/progress.json").read_text()) == {"done": 2}
    second = manifest.finish_audit(audit, files, [], {})
    assert second == written, "the first manifest stands, whatever a second driver lists"


def test_only_an_audit_that_never_began_is_forgotten(tmp_path):
    store = Store(str(tmp_path))
    never, begun = Audit(store, "never"), Audit(store, "begun")
    manifest.begin_audit(begun, {"a": 1}, [])
    for audit in (never, begun):
        manifest.write_progress(audit, {"done": 1})
        store.create(audit.name("failures/index/0000-a.log"), b"why")
        store.create(audit.name("notes.txt"), b"not ours")
        manifest.remove_unbegun(audit)
    kept = ["audit.yaml", "failures/index/0000-a.log", "notes.txt", "plan.parquet", "progress.json"]
    assert store.names("audits/begun") == [begun.name(name) for name in kept]
    assert store.names("audits/never") == [never.name("notes.txt")]


def test_a_manifest_needs_its_files(audit: Audit):
    with pytest.raises(ValueError, match=r"demo cannot be finished: report\.html does not exist"):
        manifest.finish_audit(audit, ["report.html"], [], {})
    assert audit.store.names("") == []


@pytest.mark.parametrize("name", ["", "a/b", "../up", "latest.json", ".hidden"])
def test_audit_names_that_are_refused(audit: Audit, name: str):
    with pytest.raises(ValueError, match=r"expected letters, digits"):
        Audit(audit.store, name)


def test_settings_that_grow_without_end_are_damaged(tmp_path):
    """Nine lines of aliases are 9^9 values as soon as they are compared."""
    audit = Audit(Store(str(tmp_path)), "demo")
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    write_bytes(audit, "audit.yaml", "\n".join(lines).encode())
    with pytest.raises(Damaged, match=r"audits/demo/audit.yaml is damaged: YAMLError: it has aliases"):
        read_settings(audit)
