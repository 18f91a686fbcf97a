"""What every audit must be like in the end, whatever happened to it on the way."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.jobs.world import Found
from tests.tolerances import SCORE16

HINTS = {"manifest.json", "progress.json"}


@dataclass(frozen=True)
class Undisturbed:
    """The audit that others are compared with."""

    found: Found

    def require_same(self, store: Path, audit: str = "first") -> Found:
        """The audit on `store` says the same, counts every sample once, and lists exactly what stands."""
        found = Found(store, audit)
        self._require_same_scores(found)
        self._require_same_order(found)
        require_counts(found)
        require_listed(found)
        return found

    def _require_same_scores(self, found: Found) -> None:
        for column in ("triangle", "triangle~plain"):
            ours, theirs = found.scores(column=column), self.found.scores(column=column)
            assert ours.keys() == theirs.keys(), "samples were lost or made up"
            a, b = (np.array([s[i] for i in sorted(s)]) for s in (ours, theirs))
            off = np.abs(a - b).max() / np.sqrt(np.mean(b**2))
            assert off <= SCORE16, f"{column}: scores moved by {off:.2g} of their size: a shard counted twice or not"

    def _require_same_order(self, found: Found) -> None:
        scores = self.found.scores()
        tie = 2 * SCORE16 * np.sqrt(np.mean(np.square(list(scores.values()))))
        for end, sign in (("top", 1), ("bottom", -1)):
            ours, theirs = ([r["sample_id"] for r in f.top(end=end)] for f in (found, self.found))
            assert len(ours) == len(theirs) == len(set(ours))
            placed = sign * np.array([scores[i] for i in ours])
            assert (np.diff(placed) <= tie).all(), f"the order of {end} changed by more than ties"


def require_counts(found: Found) -> None:
    plan = {r["shard"]: r["rows"] for r in pq.read_table(found.folder / "plan.parquet").to_pylist()}
    parts = found.manifest["parts"]
    assert [p["shard"] for p in parts] == list(plan), "a shard is listed twice, or missing, or out of order"
    assert {p["shard"]: p["rows"] + p["rejected"] for p in parts} == plan, "a sample is neither a feature nor a reject"


def require_listed(found: Found) -> None:
    there = {p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()}
    results = {n for n in there if not n.startswith("failures/") and not n.endswith(".tmp")} - HINTS
    assert set(found.manifest["files"]) == results, "the manifest lists something else than what stands"
    listed = {found.folder / name: entry for name, entry in found.manifest["files"].items()}
    listed |= {found.store / part["name"]: part for part in found.manifest["parts"]}
    for path, entry in listed.items():
        data = path.read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"]), (
            f"not as listed: {path}"
        )
    parts = set((found.store / "features").glob("*/parts/*.parquet"))
    assert parts == {found.store / part["name"] for part in found.manifest["parts"]}, "two sets of parts"


def temporaries(store: Path) -> list[Path]:
    """What killed writers left."""
    return [p for p in store.rglob(".*.tmp") if p.is_file()]


def lasting(files: dict[str, int]) -> dict[str, int]:
    """Those of `files_under` that are written once and never again."""
    return {
        n: t
        for n, t in files.items()
        if not n.endswith((".tmp", "/progress.json", "/latest.json", "audits/index.html", "audits/index.json"))
    }
