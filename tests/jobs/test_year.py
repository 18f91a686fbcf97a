"""A year of daily ticks over data that grows, shrinks and changes: the real driver on a clock of its own.

The model is the Gaussian, whose closed form makes an audit of a day cheap; everything else is as on any day.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_trak.audit import worker as workers
from concept_trak.audit.featurize import FeaturizeWorker
from concept_trak.audit.plan import shards
from concept_trak.audit.resolve import tick
from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.data.survey import survey
from concept_trak.models.gaussian import Gaussian
from concept_trak.store.store import Store
from jobs.audit import audit
from jobs.gc import GcConfig, gc
from jobs.verify import VerifyConfig, verify
from tests.jobs.world import Found, World
from tests.tolerances import BATCH32, STORED16

DAYS, DAY = 365, 86400
ROWS, SHARD, MOST = 8, 4, 5  # of a file, of a shard, files at once
CLASSES = {"triangle": "0", "circle": "1", "square": "2"}
CONCEPT = "{name: triangle, labels: '0', without_labels: '1', samples: 1, truth: {shape: triangle}}"


class Killed(BaseException):
    """Stands in for SIGKILL at an exact place, which no signal can be aimed at."""


class Year:
    """A store and a data set that live through a year; `ages` moves everything but the data into the past.

    `began`: the shards whose work was begun, as often as it was. `inside`: what happens amid the next shard, once.
    """

    def __init__(self, world: World, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.store, self.data, self.files = root / "store", root / "data", 0
        self.began = Counter[str]()
        self.inside: Callable[[], Found] | None = None
        self.made = root / "made"
        self.data.mkdir()
        plain = FeaturizeWorker._computed

        def counted(worker, methods, shard, attempt):
            self.began[shard.name] += 1
            inside, self.inside = self.inside, None
            if inside is not None:
                inside()
            return plain(worker, methods, shard, attempt)

        self.config, self.run = world.configs(
            self.store, f"data.uri={self.data}", "data.caption_column=class", "data.captions=class",
            f"data.shard_rows={SHARD}", "projector.dim=16", "top=4", "since=latest", f"concepts=[{CONCEPT}]",
            method="d_trak",
        )  # fmt: skip
        patch.setattr(FeaturizeWorker, "_computed", counted)
        patch.setattr(workers, "load_model", lambda *ignored, **settings: Gaussian())

    def add(self) -> None:
        """One more file; its id and time, which is its version, never come again."""
        (made,) = write_synthetic(self.made, ROWS, 0, files=1, first=ROWS * self.files, resolution=16)
        table = pq.read_table(made)
        told = pa.array([CLASSES[shape] for shape in table["shape"].to_pylist()])
        file = self.data / f"{self.files:03d}.parquet"
        pq.write_table(table.append_column("class", told), file)
        shutil.rmtree(self.made)
        dated(file, 1e9 + self.files)
        self.files += 1

    def change(self, day: int) -> None:
        """What happens to the data in a day: it grows, or loses its oldest file, or one is written anew, or nothing."""
        there = sorted(self.data.iterdir())
        if not there or (day % 2 and len(there) < MOST):
            self.add()
        elif len(there) >= MOST:
            there[0].unlink()
        elif day % 6 == 4:
            rows = pq.read_table(there[-1])
            turned = pa.array([str((int(c) + 1) % len(CLASSES)) for c in rows["class"].to_pylist()])
            pq.write_table(rows.set_column(rows.column_names.index("class"), "class", turned), there[-1])
            dated(there[-1], 2e9 + day)

    def tick(self, name: str, store: Path | None = None) -> Found:
        """The audit of this name; like the command of a schedule, it differs from the others in nothing else."""
        config = replace(self.config, audit=name, store=str(store or self.store))
        return Found(store or self.store, name, audit(config, self.run))

    def complete(self, name: str, store: Path | None = None) -> Found:
        """A tick that comes to its end, over every shard of the data as it is."""
        found = self.tick(name, store)
        assert found.code == 0
        whole = {shard.name for shard in shards(survey(self.config.data, "class").sources, SHARD)}
        assert {part["shard"] for part in found.manifest["parts"]} == whole, "an audit left out a part of its data"
        return found

    def lives(self, day: int, kind: str) -> bool:
        """One day; whether the next day's tick began, and ended, amid this day's."""
        if kind != "early":
            self.change(day)
        if kind == "died":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Store, "create", dies_at(3 + day % 4))
                with pytest.raises(Killed):
                    self.tick(called(day))
        elif kind in ("on time", "overlapped"):
            self.inside = (lambda: self.complete(called(day + 1))) if kind == "overlapped" else None
            self.complete(called(day))
        begun, self.inside = kind == "overlapped" and self.inside is None, None
        self.ages()
        return begun

    def ages(self) -> None:
        for path in self.store.rglob("*"):
            if path.is_file():
                dated(path, path.stat().st_mtime - DAY)

    def planned(self) -> set[str]:
        """The shards that the audits of the store name."""
        plans = self.store.glob("audits/*/plan.parquet")
        return {row["shard"] for plan in plans for row in pq.read_table(plan).to_pylist()}

    def unplanned(self) -> list[Path]:
        """Audits whose driver died before it had written what they need: they may need anything, for five days."""
        return [path for path in self.store.glob("audits/*/audit.yaml") if not (path.parent / "plan.parquet").exists()]

    def parts(self) -> set[str]:
        return {path.stem for path in self.store.glob("features/*/parts/*.parquet")}


def kind_of(day: int) -> str:
    if day % 11 == 5:
        return "missed"
    return "died" if day % 9 == 4 else "overlapped" if day % 8 == 3 else "on time"


def called(day: int) -> str:
    return tick("@daily", datetime(2026, 1, 1, 3, tzinfo=UTC) + timedelta(days=day))


def dated(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def dies_at(nth: int):
    """`Store.create` of a process that is killed at its nth write."""
    plain, left = Store.create, nth

    def create(self, name: str, data: bytes) -> bool:
        nonlocal left
        if (left := left - 1) < 0:
            raise Killed
        return plain(self, name, data)

    return create


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_year_of_days(world: World, tmp_path, monkeypatch):
    """Ticks that are missed, that die, and that begin amid another; a gc every week, by every rule there is."""
    year, sizes, happened, early = Year(world, tmp_path, monkeypatch), list[int](), Counter[str](), False
    for day in range(DAYS):
        happened[kind := "early" if early else kind_of(day)] += 1
        early = year.lives(day, kind)
        if day % 7 == 6:
            assert gc(GcConfig(str(year.store), True, keep=4, days=40, unfinished_days=5)) == 0
            assert year.parts() <= year.planned() or year.unplanned(), "what no audit names stays"
            assert len(list(year.store.glob("audits/*/manifest.json"))) <= 4
            sizes.append(sum(path.stat().st_size for path in year.store.rglob("*") if path.is_file()))
    assert min(happened.values()) > 10, happened
    assert max(year.began.values()) <= 2, "a shard is begun again only if its driver died, or another overlapped it"
    assert sum(count - 1 for count in year.began.values()) <= happened["died"] + happened["early"]
    assert max(sizes[26:]) <= 1.5 * max(sizes[8:26]), f"the store grows without bound: {sizes}"
    assert verify(VerifyConfig(str(year.store))) == 0
    last, anew = year.complete("last"), year.complete("anew", tmp_path / "anew")
    ours, theirs = last.scores("d_trak"), anew.scores("d_trak")
    assert ours.keys() == theirs.keys()
    largest = max(map(abs, theirs.values()))
    assert max(abs(ours[i] - theirs[i]) for i in theirs) <= (BATCH32 + STORED16) * largest, "a year changed the answer"
