"""A store that was written before sources had an index is audited on, and nothing that it has is computed again."""

import json
import shutil

import numpy as np
import pytest

from concept_trak.store.tables import read_parquet, to_parquet
from tests.jobs.world import CONCEPT, Found, files_under


@pytest.fixture
def old(baseline, tmp_path) -> Found:
    """The baseline's store without what is kept of its data; features, audit and manifest are as they were."""
    store = shutil.copytree(baseline.store, tmp_path / "store", copy_function=shutil.copy2)
    shutil.rmtree(store / "sources")
    (store / "audits/index.json").unlink()
    return Found(store, "first", 0)


def test_another_question_indexes_the_data_and_computes_no_feature(world, baseline, old, capsys):
    features = files_under(old.store / "features")
    found = world.audit(old.store, "audit=second", f"concepts=[{CONCEPT.replace('samples: 2', 'samples: 3')}]")
    assert found.code == 0
    assert "6 of 6 shards are done, no gradient work" in capsys.readouterr().out
    assert files_under(old.store / "features") == features, "a feature or a Gram was computed again"
    known = {f.relative_to(old.store): f.read_bytes() for f in old.store.glob("sources/*/*.parquet")}
    assert known == {f.relative_to(baseline.store): f.read_bytes() for f in baseline.store.glob("sources/*/*.parquet")}


def test_the_same_question_has_the_same_answer(world, baseline, old):
    found = world.audit(old.store, "audit=second")
    assert [(r["sample_id"], r["score"], r["caption"]) for r in found.top()] == [
        (r["sample_id"], r["score"], r["caption"]) for r in baseline.top()
    ]
    np.testing.assert_array_equal(found.query("caption_trak")["solved"], baseline.query("caption_trak")["solved"])


def test_an_audit_that_was_begun_goes_on(world, old, capsys):
    before = files_under(old.store / "features")
    (old.folder / "manifest.json").unlink()
    assert world.audit(old.store).code == 0
    assert (old.folder / "manifest.json").exists()
    assert files_under(old.store / "features") == before
    assert world.audit(old.store).code == 0
    assert "audit first is finished: nothing to compute" in capsys.readouterr().out


def test_records_without_a_layout_are_planned_from(world, baseline, tmp_path):
    """As the first indices had them: how images lie in their files is unknown, and counts as once."""
    store = shutil.copytree(baseline.store, tmp_path / "store", copy_function=shutil.copy2)
    for file in store.glob("sources/*/records/*.json"):
        record = json.loads(file.read_text())
        del record["layout"]
        file.write_text(json.dumps(record))
    for file in store.glob("sources/*/surveys/*.parquet"):
        table = read_parquet(file.read_bytes())
        records = [json.loads(text) for text in table["record"].to_pylist()]
        texts = [json.dumps({k: v for k, v in record.items() if k != "layout"}) for record in records]
        file.write_bytes(to_parquet(table.set_column(1, table.schema.field("record"), [texts])))
    before = files_under(store / "sources")
    found = world.audit(store, "audit=second")
    assert found.code == 0
    assert json.loads((found.folder / "metrics.json").read_text())["data"]["image_reads"] == 1
    assert files_under(store / "sources") == before
    assert json.loads((baseline.folder / "metrics.json").read_text())["data"]["image_reads"] > 1, "this proves nothing"
