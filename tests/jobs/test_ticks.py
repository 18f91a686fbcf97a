"""Two audits of one schedule that overlap. A year of them: test_year.py."""

from collections import Counter

import pytest

from concept_trak.audit.featurize import FeaturizeWorker
from concept_trak.store.manifest import Audit, finish_audit
from concept_trak.store.store import Store
from jobs.verify import VerifyConfig, verify
from tests.jobs.world import Found, World

WEEK = 7 * 86400


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The shards that are computed, by name, as they are begun."""
    began, plain = list[str](), FeaturizeWorker._computed

    def counted(self, methods, shard, attempt):
        began.append(shard.name)
        return plain(self, methods, shard, attempt)

    monkeypatch.setattr(FeaturizeWorker, "_computed", counted)
    return began


def test_a_tick_that_begins_and_ends_within_another_shares_its_work(world: World, tmp_path, computed, monkeypatch):
    """The second runs while the first is in the second of four shards: only that one is computed twice."""
    plain = FeaturizeWorker._computed

    def overlapping(self, methods, shard, attempt):
        if len(computed) == 1 and self.config.audit == "2026-W48":
            assert tick("2026-W49").code == 0
        return plain(self, methods, shard, attempt)

    def tick(name: str) -> Found:
        return world.audit(tmp_path / "store", f"audit={name}", "data.shard_rows=4", data="few")

    monkeypatch.setattr(FeaturizeWorker, "_computed", overlapping)
    first = tick("2026-W48")
    second = Found(tmp_path / "store", "2026-W49")
    assert first.code == 0
    assert sorted(Counter(computed).values()) == [1, 1, 1, 2]
    assert first.manifest["parts"] == second.manifest["parts"], "two sets of parts"
    assert first.top() == second.top()
    assert verify(VerifyConfig(str(tmp_path / "store"))) == 0
    assert Store(str(tmp_path / "store")).read("audits/latest.json").count(b"2026-W48") == 1, "it ended last"


def test_an_audit_that_is_ended_again_does_not_become_the_latest(world: World, tmp_path):
    """A second driver on the first audit comes to its end after the second audit did."""
    store = tmp_path / "store"
    first = world.audit(store, "audit=first", data="few")
    told = first.manifest
    (first.folder / "manifest.json").write_text(
        (first.folder / "manifest.json").read_text().replace(told["finished"], "2026-01-01T00:00:00+00:00")
    )
    assert world.audit(store, "audit=second", data="few").code == 0
    finish_audit(Audit(Store(str(store)), "first"), sorted(told["files"]), [], {})
    assert b'"second"' in (store / "audits/latest.json").read_bytes()
