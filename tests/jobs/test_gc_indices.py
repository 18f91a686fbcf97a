"""The indices of sources are kept as long as an audit plans these sources, however the data are stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from concept_trak.audit import index_upkeep
from concept_trak.audit.index import note_listing, open_data
from concept_trak.audit.index_upkeep import IndexNeeds
from concept_trak.audit.index_verification import verify_indices
from concept_trak.audit.mapper import serial
from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig, plain_values
from concept_trak.data.shard import Shard
from concept_trak.store.manifest import PLAN, Audit, begin_audit
from concept_trak.store.sources import SOURCES, read_survey
from concept_trak.store.store import Store
from jobs.gc import GcConfig, gc
from tests.data.files import rows, write
from tests.jobs.test_year import Year
from tests.jobs.world import World


@pytest.fixture
def year(world: World, tmp_path, monkeypatch) -> Year:
    return Year(world, tmp_path, monkeypatch)


def indices(year: Year, folder: str = "") -> set[str]:
    return {path.stem for path in year.store.glob(f"sources/*/{folder}*") if path.is_file()}


def collect(year: Year, keep: int = 1) -> None:
    for _ in range(3):
        year.ages()
    assert gc(GcConfig(str(year.store), True, keep=keep)) == 0


def test_a_source_that_is_gone_leaves_no_index(year: Year):
    year.add()
    year.add()
    year.complete("first")
    gone, staying = sorted(indices(year))
    next(year.data.glob("000*")).unlink()
    year.add()
    year.complete("second")
    collect(year, keep=2)
    assert len(indices(year)) == 3, "the first audit plans it still"
    assert len(indices(year, "surveys/")) == 2
    collect(year)
    left = indices(year)
    assert gone not in left, "no audit plans it"
    assert staying in left
    assert len(left) == len(indices(year, "records/")) == 2
    assert len(indices(year, "surveys/")) == 1
    year.complete("third")
    assert indices(year) == left, "a source was indexed again"


def test_every_range_of_a_planned_folder_keeps_its_index(tmp_path):
    """The shards of a folder have versions of their own, which no index has."""
    store, data = (
        Store(str(tmp_path / "store")),
        DataConfig(uri=str(tmp_path / "data"), captions="class", caption_column="label"),
    )
    for place in ("a/0", "a/1", "b/0"):
        draw(tmp_path / f"data/{place}.png")
    sources = open_data(store, data, "class", serial).sources
    first, audit = set(store.names(SOURCES)), Audit(store, "first")
    begin_audit(audit, {"data": plain_values(data)}, planned_rows(shards(sources, 1)))
    draw(tmp_path / "data/b/1.png")
    open_data(store, data, "class", serial)
    names = store.names(SOURCES)
    dropped = {name for name in names if not IndexNeeds(store, names)(audit).keep(name)}
    assert {name.split("/")[2] for name in dropped & first} <= {"surveys", "unique"}
    assert len([name for name in names if "/surveys/" in name]) == 2


def test_an_audit_of_a_folder_keeps_its_survey_and_its_ranges(tmp_path):
    """Its shards have versions of their own, which no survey has. What it needs stays when gc ran before."""
    store, audits = Store(str(tmp_path / "store")), list[Audit]()
    data = DataConfig(uri=str(tmp_path / "data"), captions="class", caption_column="label")
    draw(tmp_path / "data/a/0.png")
    for n in range(3):
        draw(tmp_path / f"data/b/{n}.png")
        survey = open_data(store, data, "class", serial)
        plan = shards(survey.sources, 1)
        note_listing(store, data, survey, plan)
        audits.append(Audit(store, f"audit-{n}"))
        begin_audit(audits[-1], {"data": plain_values(data)}, planned_rows(plan))
    names = store.names(SOURCES)
    surveys = [name for name in names if "/surveys/" in name]
    plans = [name for name in names if "/plans/" in name]
    assert (len(surveys), len(plans)) == (3, 3)
    needs = IndexNeeds(store, names)
    for audit, survey in zip(audits, surveys, strict=True):
        kept = {name for name in names if needs(audit).keep(name)}
        assert {name for name in kept if "/surveys/" in name} == {survey, surveys[-1]}
        assert len([name for name in kept if "/plans/" in name]) == 1
        current = 2 if audit is audits[-1] else 3  # a and b as they are, and b as it was
        assert len([name for name in kept if "/records/" in name]) == current
    for name in names:
        if not needs(audits[0]).keep(name):
            store.delete(name)
    left = store.names(SOURCES)
    assert [name for name in left if not IndexNeeds(store, left)(audits[0]).keep(name)] == [], "a second gc took more"
    assert not [finding for finding in verify_indices(store) if finding.damage]


def test_no_survey_is_read_again_for_another_audit(tmp_path, monkeypatch):
    """Three audits of data that grow by a file: each needs its own survey, the newest, and the sources of both."""
    store, data, audits = Store(str(tmp_path / "store")), DataConfig(str(tmp_path / "data")), list[Audit]()
    for n in range(3):
        write(tmp_path / f"data/{n}.parquet", rows(2, first=2 * n))
        plan = shards(open_data(store, data, "text", serial).sources, 2)
        audits.append(Audit(store, f"audit-{n}"))
        begin_audit(audits[-1], {"data": plain_values(data)}, planned_rows(plan))
    names, read = store.names(SOURCES), list[str]()
    monkeypatch.setattr(
        index_upkeep, "read_survey", lambda store, name, parsed: read.append(name) or read_survey(store, name, parsed)
    )
    needs = IndexNeeds(store, names)
    needed = [needs(audit) for audit in audits]
    surveys = [name for name in names if "/surveys/" in name]
    assert read == surveys, "a survey was read for each audit"
    for survey, of_audit in zip(surveys, needed, strict=True):
        assert {name for name in surveys if of_audit.keep(name)} == {survey, surveys[-1]}
    (tmp_path / "data/0.parquet").unlink()
    open_data(store, data, "text", serial)
    names = store.names(SOURCES)
    indices = sorted(name for name in names if name.count("/") == 2)
    last, first = IndexNeeds(store, names)(audits[-1]), IndexNeeds(store, names)(audits[0])
    assert [last.keep(name) for name in indices] == [True] * 3, "it plans the file that is gone"
    assert [first.keep(name) for name in indices] == [True] * 3, "the newest survey has the other two"


def planned_rows(plan: Sequence[Shard]) -> list[dict[str, Any]]:
    return [
        {key: getattr(shard, key) for key in PLAN.names if key != "shard"} | {"shard": shard.name} for shard in plan
    ]


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (len(path.stem), 0, 0)).save(path)
