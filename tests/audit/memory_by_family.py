"""The memory that a preflight states for three families, and the memory that a worker then takes, as lines of JSON.

`python -m tests.audit.memory_by_family cpu` runs in a process of its own, so that its memory is its own.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Probe
from concept_trak.audit import dry_run
from concept_trak.audit.dry_run import DryRunFeaturizeWorker, few
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.index import IndexReader
from concept_trak.audit.mapper import FirstAttempt
from concept_trak.audit.peak_memory import PeakMemory
from concept_trak.audit.prepare import Prepared, prepare
from concept_trak.config import AuditConfig, DataConfig, ModelConfig, WorkerSettings
from concept_trak.models import small
from tests.models.tiny import sana
from tests.models.tiny_flows import flux

FAMILIES = {
    "stable_diffusion": (64, lambda: small.latent_pipeline(0, resolution=64)),
    "flux": (128, lambda: flux(guidance=True)),
    "sana": (64, sana),
}
BATCH, TIMED = 8, 4
STATE = Probe("forward_noise", "denoising_error", times=(500,))


def prepared(folder: Path, family: str, device: str) -> Prepared:
    side, build = FAMILIES[family]
    build().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2 * BATCH):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"images/{i}.png")
        (folder / f"images/{i}.txt").write_text("a red square")
    config = AuditConfig(
        store=str(folder / "store"),
        audit="memory",
        model=ModelConfig(
            path=str(folder / "model"), parameters=r"\.weight$", batch=BATCH, resolution=side, device=device
        ),
        data=DataConfig(uri=str(folder / "images"), caption_column="txt", shard_rows=2 * BATCH),
        methods={"row": Method(STATE, STATE)},
        projector=Projector("sketch", 256),
        concepts=(Concept("red", prompt="a red square", without_prompt="a square"),),
    )
    return prepare(config, WorkerSettings(gpus=int(device == "cuda")))


def figures(p: Prepared) -> dict[str, Any]:
    """Bytes in use before a batch, the stated peak of a batch, and the peak of two batches of a worker."""
    shard = few(IndexReader(p.store)(p.plan[0]), p.config, p.resolution)
    worker = DryRunFeaturizeWorker(p.work)
    PeakMemory.reset()
    start = PeakMemory.so_far()
    result = worker(FeaturizeTask(("row",), shard), FirstAttempt())
    del worker
    audit = FeaturizeWorker(p.work)
    PeakMemory.reset()
    audit(FeaturizeTask(("row",), p.plan[0]), FirstAttempt())
    peak, stated = PeakMemory.so_far(), result.peak
    return {"timed": result.timed, "batch": result.batch,
            "host": [start.host, stated.host, peak.host],
            "device": [sum(gpu.peak for gpu in memory.gpus) for memory in (start, stated, peak)]}  # fmt: skip


if __name__ == "__main__":
    dry_run.MOST = TIMED
    torch.manual_seed(0)
    for name in FAMILIES:
        with TemporaryDirectory() as folder:
            print(json.dumps({"family": name, **figures(prepared(Path(folder), name, sys.argv[1]))}), flush=True)
