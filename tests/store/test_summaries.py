"""Lists of audits read each manifest once, and believe no file but the manifest."""

import pytest

from concept_trak import UserError
from concept_trak.store import summaries
from concept_trak.store.manifest import Audit, begin_audit, finish_audit
from concept_trak.store.records import Record
from concept_trak.store.store import Store
from concept_trak.store.summaries import SUMMARIES, keep_summaries, read_summaries, summarize_audits

FP = "f" * 8


def finish(store: Store, name: str, rows: int) -> None:
    audit = Audit(store, name)
    settings = {"concepts": [{"name": "red"}], "methods": {"trak": {}}, "fingerprints": {"trak": FP}}
    begin_audit(audit, settings, [])
    record = Record(fingerprint=FP, shard="s", rows=rows, rejected=0, bytes=9, sha256="0" * 64, sum_squares=1.0,
                    rejects_by_reason={}, seconds=0.0, attempt=1, host="h")  # fmt: skip
    finish_audit(audit, ["audit.yaml"], [record], {"fingerprints": {"trak": FP}})


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The audits whose manifests are read."""
    names, read = [], summaries.read_manifest
    monkeypatch.setattr(summaries, "read_manifest", lambda audit: (names.append(audit.id), read(audit))[1])
    return names


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(str(tmp_path))
    finish(store, "a", 3)
    finish(store, "b", 5)
    begin_audit(Audit(store, "begun"), {}, [])
    return store


ALL = ("a", "b", "begun")


def test_a_manifest_is_read_once(store, reads):
    first = summarize_audits(store, ALL)
    assert [(s.audit, s.samples, s.concepts, s.methods, s.report) for s in first] == [
        ("a", 3, ("red",), ("trak",), False), ("b", 5, ("red",), ("trak",), False)
    ]  # fmt: skip
    keep_summaries(store, first)
    assert sorted(reads) == ["a", "b"]
    assert summarize_audits(store, ALL) == first
    finish(store, "c", 7)
    assert [s.samples for s in summarize_audits(store, (*ALL, "c"))] == [3, 5, 7]
    assert sorted(reads) == ["a", "b", "c"], "a manifest was read again"


def test_another_manifest_of_the_same_name_is_read_again(store, reads):
    keep_summaries(store, summarize_audits(store, ALL))
    reads.clear()
    for name in store.names("audits/a"):
        store.delete(name)
    assert [s.audit for s in summarize_audits(store, ALL)] == ["b"], "an audit that is gone is listed"
    finish(store, "a", 4)
    assert [s.samples for s in summarize_audits(store, ALL)] == [4, 5]
    assert reads == ["a"]


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"{}", b"7", b"[7]", b'[{"audit": "a"}]', b"\xff", b'{"a": {}}']
)
def test_a_file_that_is_none_costs_a_reading(store, reads, content):
    expected = summarize_audits(store, ALL)
    keep_summaries(store, expected)
    store.replace(SUMMARIES, content)
    reads.clear()
    assert read_summaries(store) == {}
    assert summarize_audits(store, ALL) == expected
    assert sorted(reads) == ["a", "b"]


def test_a_damaged_manifest_is_named(store):
    keep_summaries(store, summarize_audits(store, ALL))
    store.replace("audits/a/manifest.json", b"{")
    with pytest.raises(UserError, match=r"audits/a/manifest\.json is damaged"):
        summarize_audits(store, ALL)


def test_an_audit_whose_settings_cannot_be_read_is_not_kept(store, reads):
    store.replace("audits/a/audit.yaml", b"[")
    found = summarize_audits(store, ALL)
    assert [(s.audit, s.samples, s.methods) for s in found] == [("a", 0, ()), ("b", 5, ("trak",))]
    keep_summaries(store, found)
    assert set(read_summaries(store)) == {"b"}


def test_no_audit_is_called_like_the_file(store):
    with pytest.raises(UserError, match=r"audit='index\.json'"):
        Audit(store, "index.json")
