"""The bases of workers: their settings, the model that they open, and features that are read ahead."""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.batch_size import fitting_batch_size
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.audit.index import IndexReader
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.plan import feature_settings
from concept_trak.config import AuditConfig, ModelConfig, WorkerSettings
from concept_trak.models import load_model
from concept_trak.store.identity import FeatureSet, read_feature_settings, setting_differences
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Block
from concept_trak.store.prefetch import prefetch
from concept_trak.store.records import Record, part_blocks, read_part
from concept_trak.store.store import Store


@dataclass(frozen=True)
class Work:
    """The settings of a worker: the configuration, the fingerprint of each method's features, and its resources."""

    config: AuditConfig
    features: dict[str, FeatureSet]
    settings: WorkerSettings = field(default_factory=WorkerSettings)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each method's features, as the files of an audit name them."""
        return {method: features.fingerprint for method, features in self.features.items()}


class StoreWorker:
    """A worker that needs the store and no model."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.settings.threads)
        self.work, self.store = work, Store(work.config.store)
        self.audit, self.index = Audit(self.store, work.config.audit), IndexReader(self.store)

    def blocks(self, *records: Record) -> Generator[Block, None, None]:
        """The row groups of the parts, in order. Each part is checked against its record, by its sha256.

        While one part is used, a thread reads and checks the next. So two parts and a row group are in memory, however
        many there are. A row group is decoded where it is used: in another thread, its memory would be new each time.
        """
        with closing(prefetch((record, read_part(self.store, record)) for record in records)) as parts:
            for record, data in parts:
                yield from part_blocks(self.store, record, data)

    def features(self, *records: Record) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """(ids, weight [n], phi [n, k]) of each row group of the parts, in order, in float32."""
        for block in self.blocks(*records):
            unit, weight, scale = map(torch.from_dlpack, (block.unit, block.weight, block.scale))
            yield block.ids, weight.clone(), unit.float() * scale[:, None]


def open_model(m: ModelConfig, settings: WorkerSettings, frames: int = 0) -> Denoiser:
    """The model of a configuration, on the GPUs that the worker owns if there are any.

    Raises:
        UserError: the worker was given more GPUs than it sees, or the model is refused.
    """
    available = "cuda" if settings.gpus and torch.cuda.is_available() else "cpu"
    device: str | list[str] = available if m.device == "auto" else m.device
    if device == "cuda" and settings.gpus > 1:
        device = [f"cuda:{i}" for i in range(settings.gpus)]
        if torch.cuda.device_count() < len(device):
            raise UserError(
                f"cluster.gpus={len(device)}, and this worker sees {torch.cuda.device_count()}; set cluster.gpus to "
                "the number of GPUs that one machine has, or fewer"
            )
    return load_model(
        m.path,
        parameters=m.parameters,
        negative=m.negative,
        combinations=m.combinations,
        resolution=m.resolution,
        frames=frames,
        device=device,
        offload=m.offload,
        precision=m.precision,
        weights=m.weights,
        lora=m.lora,
        embeddings=m.embeddings,
    )


class ModelWorker:
    """A worker with a model, whose fingerprints were compared with the driver's."""

    def __init__(self, work: Work) -> None:
        self.work, self.config = work, work.config
        torch.set_num_threads(work.settings.threads)
        self.store = Store(work.config.store)
        self.denoiser = open_model(work.config.model, work.settings, work.config.data.frames)
        self.index = IndexReader(self.store)
        self.identity = identity = self.denoiser.identity()
        for name, method in work.config.methods.items():
            settings = feature_settings(work.config, method, self.denoiser, identity)
            if FeatureSet.of(settings) != work.features[name]:
                raise UserError(self._another_model(name, settings))

    def _another_model(self, method: str, settings: dict[str, Any]) -> str:
        """What differs between the settings of this model's features and those of the features of the audit."""
        expected = self.work.features[method]
        try:
            different = "; ".join(setting_differences(settings, read_feature_settings(self.store, expected).settings))
        except FileNotFoundError:  # of a driver whose store this process does not share
            different = f"how they differ is not known, because {self.store.uri} has no {expected.settings_file}"
        return (
            f"the model at {self.config.model.path!r} is not the one of the features {expected.fingerprint} of "
            f"{method}: {different}. Expected the same files in every process; put the model that the features were "
            "computed with where every node finds it"
        )

    def batch_size(self, attempt: Attempt) -> int:
        return max(1, (self.config.model.batch or self._fitting) >> attempt.halvings)

    @cached_property
    def _fitting(self) -> int:
        s = self.work.settings
        neighbours = s.neighbours or max(1, int(len(os.sched_getaffinity(0)) / s.cpus))
        memory = s.memory if self.denoiser.device.type == "cpu" else 0
        return fitting_batch_size(
            self.denoiser, self.config.projector, len(self.config.methods), memory or None, neighbours
        )
