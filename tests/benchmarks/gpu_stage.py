"""How long a GPU waits while a worker makes the features of a shard: images are read, encoded and pulled back.

busy is the time in which at least one kernel or copy runs, by the profiler's own events on the device. On a CPU the
same code takes PyTorch's operators in place of kernels, and so says nothing about a GPU.
"""

import argparse
import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Probe
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.mapper import FirstAttempt
from concept_trak.audit.prepare import Prepared, prepare
from concept_trak.config import AuditConfig, DataConfig, ModelConfig, WorkerSettings

SIDE = 512
"""Of a JPEG in pixels."""
METHOD = "concept_b"


def measured_stage(asked: argparse.Namespace, options: dict[str, Any], probe: Probe, batch: int) -> dict[str, Any]:
    """Samples a second, share of the time in which the device waits, and peak memory, of a shard of two batches."""
    folder = Path(options["path"]).parent / f"stage-{batch}"
    folder.mkdir()
    prepared = _prepared(asked, options, probe, batch, folder)
    gc.collect()  # the model of the driver, which has done its work
    worker, (first, second) = FeaturizeWorker(prepared.work), prepared.plan
    worker(FeaturizeTask((METHOD,), first), FirstAttempt())  # warms up
    cuda = asked.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as events:
        start = time.perf_counter()
        worker(FeaturizeTask((METHOD,), second), FirstAttempt())
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    peak = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if cuda else {}
    share = 1 - busy(events, DeviceType.CUDA if cuda else DeviceType.CPU) / wall
    return {"batch": batch, "per_second": second.rows / wall, "waiting": share, **peak}


def _prepared(asked: argparse.Namespace, options: dict[str, Any], probe: Probe, batch: int, folder: Path) -> Prepared:
    _write_images(folder / "images", 4 * batch)
    model = ModelConfig(**options, precision=asked.precision, batch=batch)
    data = DataConfig(uri=str(folder / "images"), caption_column="txt", shard_rows=2 * batch)
    concept = Concept("red", prompt="a red square", without_prompt="a square")
    config = AuditConfig(
        store=str(folder / "store"), audit="stage", model=model, data=data, concepts=(concept,),
        methods={METHOD: replace(METHODS[METHOD], train=probe)}, projector=Projector("sketch", 4096),
    )  # fmt: skip
    return prepare(config, WorkerSettings(cpus=torch.get_num_threads(), gpus=int(asked.device == "cuda")))


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE)).save(folder / f"{i:04d}.jpg", quality=90)
        (folder / f"{i:04d}.txt").write_text(f"a red square {i}")


def busy(events: profile, device: DeviceType) -> float:
    """Seconds in which at least one event of the device runs."""
    results: Any = events.profiler
    spans = sorted(
        (e.start_ns(), e.start_ns() + e.duration_ns())
        for e in results.kineto_results.events()
        if e.device_type() == device
    )
    total = end = 0
    for begin, finish in spans:
        total += max(0, finish - max(begin, end))
        end = max(end, finish)
    return total / 1e9
