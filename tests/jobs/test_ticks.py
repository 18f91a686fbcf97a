"""Audits of one schedule: two that overlap, and a year of them over data that grows, shrinks and changes."""

import os
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_trak.data.synthetic import write
from concept_trak.stages import Featurize
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit, finish
from jobs.gc import GcConfig, gc
from jobs.tick import named
from jobs.verify import VerifyConfig, verify
from tests.jobs.world import RESOLUTION, Found, World
from tests.tolerances import BATCH32, STORED16

WEEK = 7 * 86400


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The shards that are computed, by name, as they are begun."""
    began, plain = list[str](), Featurize._computed

    def counted(self, methods, shard, attempt):
        began.append(shard.name)
        return plain(self, methods, shard, attempt)

    monkeypatch.setattr(Featurize, "_computed", counted)
    return began


def test_a_tick_that_begins_and_ends_within_another_shares_its_work(world: World, tmp_path, computed, monkeypatch):
    """The second runs while the first is in the second of four shards: only that one is computed twice."""
    plain = Featurize._computed

    def overlapping(self, methods, shard, attempt):
        if len(computed) == 1 and self.config.audit == "2026-W48":
            assert tick("2026-W49").code == 0
        return plain(self, methods, shard, attempt)

    def tick(name: str) -> Found:
        return world.audit(tmp_path / "store", f"audit={name}", "data.shard_rows=4", data="few")

    monkeypatch.setattr(Featurize, "_computed", overlapping)
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
    finish(Audit(Store(str(store)), "first"), sorted(told["files"]), [], {})
    assert b'"second"' in (store / "audits/latest.json").read_bytes()


class Killed(BaseException):
    """Stands in for SIGKILL at an exact place, which no signal can be aimed at."""


class Year:
    """A store and a data set that live through a year; `ages` moves everything but the data into the past."""

    def __init__(self, world: World, root: Path) -> None:
        self.world, self.store, self.data = world, root / "store", root / "data"
        self.files = 0
        self.add()

    def add(self) -> None:
        """One more file of 8 rows; its id and time, which is its version, never come again."""
        (made,) = write(self.data.parent / "made", 8, 0, files=1, first=8 * self.files, resolution=RESOLUTION)
        self.data.mkdir(exist_ok=True)
        file = shutil.move(made, self.data / f"{self.files:03d}.parquet")
        os.utime(file, (1e9 + self.files, 1e9 + self.files))
        self.files += 1

    def change(self, week: int) -> None:
        """What happens to the data in a week: mostly it grows."""
        there = sorted(self.data.iterdir())
        if week % 3 == 1 and len(there) > 4:
            there[0].unlink()
        elif week % 7 == 3:
            rows = pq.read_table(there[-1])
            captions = pa.array([f"{c} again" for c in rows["caption"].to_pylist()])
            pq.write_table(rows.set_column(rows.column_names.index("caption"), "caption", captions), there[-1])
            os.utime(there[-1], (2e9 + week, 2e9 + week))
        else:
            self.add()

    def tick(self, name: str, store: Path | None = None) -> Found:
        return self.world.audit(store or self.store, f"audit={name}", f"data.uri={self.data}", "top=10", "since=latest")

    def age(self) -> None:
        for path in self.store.rglob("*"):
            if path.is_file():
                os.utime(path, (path.stat().st_mtime - WEEK,) * 2)

    def planned(self) -> set[str]:
        """The shards that the audits of the store name."""
        plans = self.store.glob("audits/*/plan.parquet")
        return {row["shard"] for plan in plans for row in pq.read_table(plan).to_pylist()}

    def parts(self) -> set[str]:
        return {path.stem for path in self.store.glob("features/*/parts/*.parquet")}


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_year_of_weeks(world: World, tmp_path, computed, monkeypatch):
    """Ticks that are missed, that die, and that overlap; a gc every week, by every rule there is."""
    year, monday = Year(world, tmp_path), datetime(2026, 1, 5, tzinfo=UTC)
    sizes, made, died = list[int](), 0, 0
    for week in range(52):
        name = named("@weekly", monday + timedelta(weeks=week))
        year.change(week)
        if week % 11 == 5:
            continue  # nobody was there
        if week % 9 == 4:
            with monkeypatch.context() as patch:
                patch.setattr(Store, "create", dies_at(3 + week % 4))
                with pytest.raises(Killed):
                    year.tick(name)
            died += 1
        else:
            assert year.tick(name).code == 0
            made += 1
        year.age()
        rules = GcConfig(str(year.store), True, keep=4, days=40, unfinished_days=20)
        assert gc(rules) == 0
        assert year.parts() <= year.planned(), "what no audit names stays"
        finished = [path.parent.name for path in year.store.glob("audits/*/manifest.json")]
        assert len(finished) <= 4 + 1, "one more than is kept, which is younger than the grace"
        sizes.append(sum(path.stat().st_size for path in year.store.rglob("*") if path.is_file()))
    assert (made, died) == (42, 5)
    assert max(Counter(computed).values()) <= 2, "a shard is computed again only if the driver died in it"
    assert sum(count - 1 for count in Counter(computed).values()) <= died
    assert max(sizes[30:]) <= 1.5 * max(sizes[8:30]), f"the store grows without bound: {sizes}"
    assert verify(VerifyConfig(str(year.store))) == 0
    last, anew = year.tick("last"), year.tick("anew", tmp_path / "anew")
    ours, theirs = last.scores(), anew.scores()
    assert ours.keys() == theirs.keys()
    largest = max(map(abs, theirs.values()))
    assert max(abs(ours[i] - theirs[i]) for i in theirs) <= (BATCH32 + STORED16) * largest, "a year changed the answer"


def dies_at(nth: int):
    """`Store.create` of a process that is killed at its nth write."""
    plain, left = Store.create, nth

    def create(self, name: str, data: bytes) -> bool:
        nonlocal left
        if (left := left - 1) < 0:
            raise Killed
        return plain(self, name, data)

    return create
