"""A store with two finished audits of one small model, sharing their features; every test gets it fresh, at one place.

One place, because an audit names its store and its data by their addresses.
"""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from concept_trak.config import AuditConfig
from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.models.small import pixel_pipeline
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.audit import audit
from jobs.exit_codes import ended
from tests.configured import configure_both
from tests.jobs.world import RESOLUTION

CONCEPT = "concepts=[{name: red, prompt: a red circle, without_prompt: a circle, samples: 2}]"
SMALL = (
    "cluster=serial", "projector.dim=64", "method=caption_trak", CONCEPT, "methods.caption_trak.train.times=[500]",
    "methods.caption_trak.query.points=11", "methods.caption_trak.query.every=5",
)  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """`root/live` holds data and store; what stood there after the audits is kept in `root/pristine`."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "live/store"

    @property
    def data(self) -> Path:
        return self.root / "live/data"

    def audit(self, name: str) -> Audit:
        return Audit(Store(str(self.store)), name)

    def run(self, name: str, *more: str, small: Sequence[str] = SMALL) -> int:
        places = (f"store={self.store}", f"data.uri={self.data}", f"model.path={self.root}/model", f"audit={name}")
        return ended(
            lambda: audit(*configure_both(AuditConfig, "config", [*places, *small, "data.shard_rows=8", *more]))
        )

    def restore(self) -> None:
        shutil.rmtree(self.root / "live", ignore_errors=True)
        shutil.copytree(self.root / "pristine", self.root / "live")  # with times: they are the sources' versions

    def parts(self) -> list[Path]:
        return sorted(self.store.glob("features/*/parts/*.parquet"))

    def grams(self) -> list[Path]:
        return sorted(self.store.glob("features/*/grams/*.safetensors"))

    def record(self, part: Path) -> Path:
        return part.parent.parent / "commits" / f"{part.stem}.json"

    def name(self, path: Path) -> str:
        return path.relative_to(self.store).as_posix()

    def written(self, folder: str = "features") -> dict[str, tuple[int, int]]:
        """When each file was written, and which file it is: a file that is written again differs."""
        files = [path for path in (self.store / folder).rglob("*") if path.is_file()]
        return {self.name(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def build(root: Path) -> Audited:
    """Two audits, `older` and `demo`: 32 images in 2 files, 4 shards."""
    pixel_pipeline(0, RESOLUTION).save_pretrained(root / "model")
    made = Audited(root)
    write_synthetic(made.data, 32, 0, files=2, resolution=RESOLUTION)
    assert made.run("older", "damping=10") == 0
    assert made.run("demo") == 0
    shutil.copytree(root / "live", root / "pristine")
    return made


def flip(path: Path, at: int | None = None) -> None:
    """Alter one byte, in the middle if not told otherwise."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def unfinish(audited: Audited, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (audited.store / "audits" / name / "manifest.json").unlink()


def unreadable(path: Path) -> None:
    """Put a file in its place that the operating system refuses to read, with EIO as a broken disk has it."""
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/self/mem")
