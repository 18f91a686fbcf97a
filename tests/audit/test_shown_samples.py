"""The samples of a page: their images are read from the data once, and then from the copies in the store."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from concept_trak import UserError
from concept_trak.audit.index import open_data
from concept_trak.audit.index_upkeep import IndexNeeds, unneeded_indices
from concept_trak.audit.index_verification import verify_indices
from concept_trak.audit.mapper import FirstAttempt, serial
from concept_trak.audit.plan import shards
from concept_trak.audit.shown_samples import ShowTask, ShowWorker
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig, DataConfig, ModelConfig, WorkerSettings, plain_values
from concept_trak.data import latents
from concept_trak.store.manifest import PLAN, Audit, begin_audit, write_table
from concept_trak.store.sources import SOURCES
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows
from tests.data.files import rows, write

IDS = ("s0", "s2", "s5")
ALL = [f"{row}.parquet" for row in (0, 2, 5)]


class Page:
    """Six rows in one source, and a worker that shows three of them."""

    def __init__(self, folder: Path, data: DataConfig) -> None:
        self.store, self.data = Store(str(folder / "store")), data
        config = AuditConfig(store=self.store.uri, audit="first", model=ModelConfig(path="/nothing"), data=data)
        self.worker = ShowWorker(Work(config, {}, WorkerSettings()))
        self.plan = shards(open_data(self.store, data, "text", serial).sources, 6)
        self.task = ShowTask(self.plan[0], IDS, frozenset(IDS[:2]), 4)

    def show(self, **changes) -> dict:
        result = self.worker(replace(self.task, **changes), FirstAttempt())
        return {sample.sample_id: sample for sample in result.samples}

    def copies(self) -> list[str]:
        return [name.rpartition("/")[2] for name in self.store.names(SOURCES) if "/images/" in name]


def images(folder: Path) -> Page:
    return Page(folder, DataConfig(write(folder / "data/a.parquet", rows(6)), id_column="id"))


def encoded(folder: Path) -> Page:
    x = torch.randn(6, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    (folder / "data").mkdir()
    columns = {"id": [f"s{n}" for n in range(6)], "caption": ["a"] * 6}
    latents.write_latents(folder / "data/a.safetensors", x, {"text": x[:, 0]}, columns)
    return Page(folder, DataConfig(str(folder / "data/a.safetensors"), id_column="id"))


@pytest.mark.parametrize("made", [images, encoded])
def test_what_was_shown_once_is_not_read_again(tmp_path, made):
    page = made(tmp_path)
    assert page.show(copied=False).keys() == set(IDS)
    assert page.copies() == [], "a question wrote into the store"
    shown = page.show()
    assert page.copies() == ALL
    assert [bool(shown[i].png) for i in IDS] == ([True, True, False] if made is images else [False] * 3)
    (file,) = (tmp_path / "data").iterdir()
    file.unlink()
    assert page.show() == shown == page.show(copied=False), "the copies give another page"
    assert not [f for f in verify_indices(page.store) if f.damage]
    with pytest.raises(UserError, match="gone"):
        page.show(ids=(*IDS, "s4"))


def test_a_copy_that_is_gone_is_read_from_the_data_and_made_again(tmp_path):
    page = images(tmp_path)
    shown = page.show()
    (gone,) = (name for name in page.store.names(SOURCES) if name.endswith("/2.parquet"))
    page.store.delete(gone)
    assert page.show() == shown
    assert page.copies() == ALL


def test_copies_stay_as_long_as_an_audit_shows_them(tmp_path):
    """All of a planned source while the audit has no top; then those in its top, and nothing of a removed audit."""
    page, audit = images(tmp_path), None
    page.show()
    names = page.store.names(SOURCES)

    def kept() -> list[str]:
        needed = IndexNeeds(page.store, names)(audit)
        removed = {garbage.name for garbage in unneeded_indices(page.store, names, needed, float("inf"))}
        assert all("/images/" in name for name in removed), "an index of planned data was removed"
        return [name.rpartition("/")[2] for name in names if "/images/" in name and name not in removed]

    audit = Audit(page.store, "first")
    (shard,) = page.plan
    plan = {key: getattr(shard, key) for key in PLAN.names if key != "shard"} | {"shard": shard.name}
    begin_audit(audit, {"data": plain_values(page.data)}, [plan])
    assert kept() == ALL
    top = [{"source": shard.source, "row": 2}, {"source": "/elsewhere/a.parquet", "row": 5}]
    write_table(audit, "top.parquet", from_rows({"source": "string", "row": "int64"}, top))
    assert kept() == ["2.parquet"]
