"""Damage is found, named and mended, and nothing that is sound is computed again."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from concept_trak.audit.prepare import prepare
from concept_trak.audit.repair import resumed_config
from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.store.codec import decode_blocks
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import feature_sets
from concept_trak.store.records import derive_record
from concept_trak.store.store import Store
from jobs.execute import ClusterConfig, RunConfig
from jobs.verify import VerifyConfig, verify
from tests.configured import configure_both
from tests.jobs.world import RESOLUTION
from tests.jobs_ops.audited import SMALL, Audited, cut, flip, unfinish
from tests.tolerances import BATCH32, STORED16

SERIAL = RunConfig(ClusterConfig(kind="serial"))


@pytest.fixture
def said(audited: Audited, capsys):
    """Run verify and return its exit code and what it said, as lines and as errors."""

    def run(**keys) -> tuple[int, list[str], str]:
        capsys.readouterr()
        code = verify(VerifyConfig(store=str(audited.store), **keys), SERIAL)
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def features(part: Path) -> np.ndarray:
    return np.concatenate([block.phi() for block in decode_blocks(part.read_bytes())])


def test_a_sound_store_is_sound(audited: Audited, said):
    code, lines, err = said()
    files = [n for n in audited.store.rglob("*") if n.is_file()]
    unlisted = {
        "manifest.json",
        "latest.json",
        "progress.json",
        "index.html",
        "index.json",
    }  # and records, which are looked at with their parts, and indices, of which only damage is listed
    files = [n for n in files if "sources" not in n.relative_to(audited.store).parts[:1]]
    expected = [f for f in files if f.name not in unlisted and f.parent.name != "commits"]
    assert (code, err) == (0, "")
    assert lines == [f"{len(expected)} files: {len(expected)} sound"], "a file was not looked at, or looked at twice"


def test_a_damaged_index_is_named_and_made_again(audited: Audited, said):
    file = next(audited.store.glob("sources/*/*.parquet"))
    flip(file)
    code, lines, _ = said()
    named = [line for line in lines if str(file.relative_to(audited.store)) in line]
    assert (code, len(named)) == (6, 1), lines
    assert said(repair=True)[0] == 0
    assert not file.exists(), "it is made again when it is needed"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip, "altered"),
        (cut, "truncated"),
        (partial(flip, at=0), "altered"),
        (partial(flip, at=-1), "altered"),
        (os.unlink, "record without part"),
    ],
    ids=["a byte in the middle", "its end", "its first byte", "its last byte", "all of it"],
)
def test_a_damaged_part_is_named_and_only_that_shard_is_computed_again(audited: Audited, said, damage, what: str):
    part, before = audited.parts()[1], audited.written()
    expected, record = features(part), audited.record(part)
    damage(part)
    named = audited.name(record if what == "record without part" else part)
    code, lines, _ = said()
    assert code == 6
    assert lines[0] == f"{what:<20} {named}"
    assert lines[-1] == "repair=true computes damaged features again"
    assert audited.written().keys() - {named} <= before.keys(), "looking must not write"
    code, lines, err = said(repair=True)
    assert (code, err) == (0, "")
    assert "features   caption_trak: 0 of 1 shards are done, 1 to compute" in lines
    after = audited.written()
    assert {n for n in after if after[n] != before.get(n)} == {audited.name(part), audited.name(record)}, (
        "a sound part was computed again, or a damaged one was not"
    )
    found = features(part)
    assert np.linalg.norm(found - expected) <= (BATCH32 + STORED16) * np.linalg.norm(expected)
    assert said()[0] == 0


def test_a_part_and_its_record_that_are_gone_are_computed_again(audited: Audited, said):
    part = audited.parts()[0]
    part.unlink()
    audited.record(part).unlink()
    assert said()[:2] == (6, [f"{'missing':<20} {audited.name(part)}", *said()[1][1:]])
    assert said(repair=True)[0] == 0
    assert part.exists()


def test_an_altered_record_is_derived_again_without_gradient_work(audited: Audited, said):
    part = audited.parts()[2]
    record, before = audited.record(part), audited.written()
    told = json.loads(record.read_text())
    for altered in (b"{", json.dumps(told | {"rows": 7}).encode(), json.dumps(told | {"sha256": "0" * 64}).encode()):
        record.write_bytes(altered)
        code, lines, _ = said(audit="demo")
        assert (code, lines[0]) == (6, f"{'altered':<20} {audited.name(record)}"), "the manifest agrees with the part"
        code, lines, err = said(repair=True)
        assert (code, err) == (0, "")
        assert "features   caption_trak: 1 of 1 shards are done, no gradient work" in lines
        assert json.loads(record.read_text()) == told | {"seconds": 0.0, "attempt": 0, "host": ""}
    after = audited.written()
    assert {n for n in after if after[n] != before[n]} == {audited.name(record)}


def test_a_part_that_lost_its_record_gets_one(audited: Audited, said):
    part = audited.parts()[3]
    audited.record(part).unlink()
    before = audited.written()
    code, lines, _ = said()
    assert (code, lines[0]) == (6, f"{'part without record':<20} {audited.name(part)}")
    assert said(repair=True)[0] == 0
    after = audited.written()
    assert after[audited.name(part)] == before[audited.name(part)], "the part was sound and must stay"
    assert set(after) - set(before) == {audited.name(audited.record(part))}


def test_an_altered_gram_is_summed_again(audited: Audited, said):
    (gram, *_), before = audited.grams(), audited.written()
    data = gram.read_bytes()
    flip(gram)
    code, lines, _ = said(audit="older")
    assert (code, lines[0]) == (6, f"{'altered':<20} {audited.name(gram)}")
    assert said(audit="older", repair=True)[0] == 0
    assert gram.read_bytes() == data, "the same sum over the same parts is the same bytes"
    after = audited.written()
    assert {n for n in after if after[n] != before[n]} == {audited.name(gram)}


@pytest.mark.parametrize("name", ["top.parquet", "report.html", "caption_trak/gram.safetensors"])
def test_altered_results_cannot_be_mended_and_it_says_what_to_do(audited: Audited, said, name: str):
    result = audited.store / "audits/demo" / name
    flip(result)
    data = result.read_bytes()
    code, lines, _ = said()
    assert (code, lines[0]) == (6, f"{'altered':<20} audits/demo/{name}")
    code, _, err = said(repair=True)
    assert code == 6
    assert f"audits/demo/{name}: results cannot be mended; start a new audit, it reuses the features of demo" in err
    assert result.read_bytes() == data
    result.unlink()
    assert said()[1][0] == f"{'missing':<20} audits/demo/{name}"


@pytest.mark.parametrize("name", ["manifest.json", "plan.parquet", "audit.yaml"])
def test_damage_to_what_describes_an_audit_is_no_crash(audited: Audited, said, name: str):
    (audited.store / "audits/demo" / name).write_bytes(b"\xff{")
    flip(audited.parts()[0])
    code, lines, _ = said(audit="demo")
    assert code == 6
    assert f"{'truncated' if name != 'manifest.json' else 'altered':<20} audits/demo/{name}" in lines
    assert f"{'altered':<20} {audited.name(audited.parts()[0])}" in lines
    code, _, err = said(audit="demo", repair=True)
    assert (code, "results cannot be mended" in err) == (6, True)
    left = said(audit="older")[0]
    assert left == (0 if name == "manifest.json" else 6), "plan and settings say what to compute; a manifest does not"


def test_an_older_manifest_says_recomputed_since(audited: Audited, said):
    part = audited.parts()[0]
    store, fp, shard = Store(str(audited.store)), part.parent.parent.name, part.stem
    other = part.read_bytes().replace(b"parquet-cpp-arrow", b"parquet-cpp-Arrow")  # the writer's name: another rounding
    assert other != part.read_bytes()
    store.delete(FeatureSet(fp).record(shard))
    store.replace(FeatureSet(fp).part(shard), other)
    derive_record(store, FeatureSet(fp), shard)
    code, lines, _ = said()
    name = audited.name(part)
    assert lines[:2] == [
        f"{'recomputed since':<20} {name} (audit demo)",
        f"{'recomputed since':<20} {name} (audit older)",
    ]
    assert code == 0, "the part agrees with its record: nothing is wrong"
    assert audited.run("newer") == 0
    assert said(audit="newer")[1][0].endswith("sound"), "an audit since then lists what stands now"


def test_nothing_is_deleted_when_the_source_is_gone(audited: Audited, said):
    part = audited.parts()[0]
    flip(part)
    before = audited.written()
    shutil.rmtree(audited.data)
    code, _, err = said(repair=True)
    assert code == 6
    assert f"error: audit demo: data.uri='{audited.data}' does not exist" in err
    assert audited.written() == before, "damaged or not, it is all there is of a source that is gone"


def test_nothing_is_deleted_when_the_source_changed(audited: Audited, said):
    flip(audited.parts()[0])
    before = audited.written()
    os.utime(sorted(audited.data.iterdir())[0], ns=(1, 1))
    code, _, err = said(repair=True)
    assert code == 6
    assert "the data of audit demo changed since it began" in err
    assert audited.written() == before


def test_an_audit_of_the_grown_data_mends_what_an_older_one_cannot(audited: Audited, said):
    part, before = audited.parts()[0], audited.written()
    write_synthetic(audited.data / "more", 8, 0, files=1, first=32, resolution=RESOLUTION)
    assert audited.run("grown") == 0
    flip(part)
    code, _, err = said(repair=True, audit="demo")
    assert (code, "is new" in err, part.exists()) == (6, True, True)
    code, _, err = said(repair=True)
    assert (code, err) == (0, ""), "the audit that can mend it has done so, so why others could not is of no interest"
    after = audited.written()
    assert {n for n in before if after[n] != before[n]} == {audited.name(part), audited.name(audited.record(part))}


@pytest.mark.soak
def test_methods_that_share_features_compute_a_shard_once(audited: Audited, said):
    sides = ("trak.train", "trak.query", "concept_a.train")
    short = [f"methods.{side}.times=[500]" for side in sides]
    short += ["methods.concept_a.query.points=11", "methods.concept_a.query.every=5"]
    shared = [key for key in SMALL if "caption_trak" not in key]
    assert audited.run("twins", "method=[trak,concept_a]", *short, small=shared) == 0
    (features,) = set(feature_sets(audited.audit("twins")).values())
    part = next((audited.store / features.parts).iterdir())
    flip(part)
    code, lines, _ = said(repair=True)
    assert code == 0
    assert len([line for line in lines if line.startswith("features ")]) == 1, "computed once for each method"


def test_a_copy_of_a_store_is_mended_where_it_is(audited: Audited, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(audited.store, copy)
    part, before = audited.parts()[0], audited.written("")
    flip(copy / audited.name(part))
    assert verify(VerifyConfig(store=str(copy), repair=True), SERIAL) == 0
    assert verify(VerifyConfig(store=str(copy))) == 0
    assert audited.written("") == before, "the store that was copied has nothing to do with it"


def test_an_unfinished_audit_is_held_to_what_it_has_done(audited: Audited, said):
    """Shards that are not done are no findings, and repair leaves them to the audit's own command."""
    unfinish(audited, "demo")
    shutil.rmtree(audited.store / "audits/older")
    todo, orphan, broken, _ = audited.parts()
    todo.unlink()
    audited.record(todo).unlink()
    audited.record(orphan).unlink()
    assert said()[0] == 0, "a part whose record is still to be derived is how a killed worker leaves it"
    flip(broken)
    code, lines, _ = said()
    assert (code, lines[0]) == (6, f"{'altered':<20} {audited.name(broken)}")
    assert said(repair=True)[0] == 0
    assert not todo.exists(), "repair computed a shard that was never done"
    assert audited.run("demo") == 0
    assert said()[0] == 0


def test_a_missing_feature_set_is_described_again(audited: Audited, said):
    (file,) = audited.store.glob("features/*/feature_set.json")
    told = file.read_bytes()
    file.unlink()
    assert said()[1][0] == f"{'missing':<20} {audited.name(file)}"
    assert said(repair=True)[0] == 0
    assert file.read_bytes() == told
    file.write_bytes(told.replace(b'"precision": "float32"', b'"precision": "float16"'))
    assert said()[1][0] == f"{'altered':<20} {audited.name(file)}"
    code, _, err = said(repair=True)
    assert (code, "precision" in err) == (6, True)


def test_settings_come_back_from_the_audit(audited: Audited):
    again = resumed_config(audited.audit("demo"))
    first = audited.audit("demo")
    assert again.projector.dim == 64
    assert again.data.shard_rows == 8
    assert prepare(again).work.fingerprints == {"caption_trak": audited.parts()[0].parent.parent.name}
    assert first.store.uri == again.store


def test_an_audit_that_is_not_there_is_named(audited: Audited, said, tmp_path):
    with pytest.raises(ValueError, match=r"has no audit dmeo; it has: demo, older"):
        said(audit="dmeo")
    with pytest.raises(ValueError, match="it has: none"):
        verify(VerifyConfig(store=str(tmp_path)))


def test_the_command_line(tmp_path):
    both = configure_both(VerifyConfig, "verify", ["cluster=serial", "repair=true", f"store={tmp_path}"])
    assert both == (VerifyConfig(store=str(tmp_path), repair=True), SERIAL)
    assert configure_both(VerifyConfig, "verify", [])[1] == RunConfig()
