"""The features of one shard: a worker that reads its samples and commits a part for each method.

Only names and small records cross machines; features go to the store.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from concept_trak.attribution.features import Features, discard_report, reject_reasons, train_features, training_batch
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import Method
from concept_trak.attribution.repeated_texts import RepeatedTexts
from concept_trak.attribution.state import Batch
from concept_trak.audit.inversion_cache import Inversions
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.plan import feature_settings
from concept_trak.audit.worker import ModelWorker, Work
from concept_trak.data.sample import Sample, batches, samples
from concept_trak.data.shard import Shard
from concept_trak.models.encode import batches_of_one_shape, encode_samples, reject_unknown_class
from concept_trak.store.part import Part, Reject
from concept_trak.store.prefetch import prefetch
from concept_trak.store.records import Record, commit_part, find_record


@dataclass(frozen=True)
class FeaturizeTask(Task):
    """One shard for methods whose training sides have the same states, so that they share each state's forward."""

    methods: tuple[str, ...]
    shard: Shard

    @property
    def label(self) -> str:
        return f"{'-'.join(self.methods)}-{self.shard.name}"

    @property
    def samples(self) -> int:
        return self.shard.rows


@dataclass(frozen=True)
class FeaturizeResult:
    """The record of each method's part, in the order of the task's methods."""

    records: tuple[Record, ...]


class FeaturizeWorker(ModelWorker):
    """Features of one shard: read, invert, pull back, project, commit.

    While one batch is computed, the next one is read and decoded, so at most two batches of images are in memory.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._workspace, self._negative_texts = Workspace(), RepeatedTexts(self.denoiser)

    def __call__(self, task: FeaturizeTask, attempt: Attempt) -> FeaturizeResult:
        # Since this run was planned, a worker that died, or another audit of the same data, may have done it.
        existing = {m: find_record(self.store, self.work.features[m], task.shard.planned) for m in task.methods}
        records = {m: record for m, record in existing.items() if record is not None}
        if missing := [m for m in task.methods if m not in records]:
            records |= self._computed(missing, task.shard, attempt)
        return FeaturizeResult(tuple(records[m] for m in task.methods))

    def _computed(self, methods: list[str], shard: Shard, attempt: Attempt) -> dict[str, Record]:
        start, ready, features, rejects = time.monotonic(), [], [], []
        read = samples(self.index(shard), self.config.data, self.denoiser.resolution)
        for batch in prefetch(batches(read, self.batch_size(attempt))):
            checked = [reject_unknown_class(self.denoiser, s) for s in batch]
            unusable = [sample for sample in checked if isinstance(sample, Reject)]
            rejects += unusable
            attempt.report(len(unusable))
            for usable in batches_of_one_shape(sample for sample in checked if isinstance(sample, Sample)):
                features.append(self.features([self.config.methods[m] for m in methods], usable, attempt.report))
                ready += [(sample.id, sample.row) for sample in usable]
        seconds, kind, records = (time.monotonic() - start) / len(methods), self.config.feature, {}
        for i, method in enumerate(methods):
            part = self._part(method, shard, ready, [each[i] for each in features], rejects)
            records[method] = commit_part(
                self.store, part, kind.dtype, kind.encoding, seconds, attempt.number, socket.gethostname()
            )
        return records

    def _part(
        self,
        method: str,
        shard: Shard,
        ready: Sequence[tuple[str, int]],
        parts: Sequence[Features],
        rejects: Sequence[Reject],
    ) -> Part:
        good, bad = _sorted_out(ready, parts, shard)
        ids, everything = tuple(ready[i][0] for i in good), tuple(sorted((*rejects, *bad), key=lambda r: r.row))
        assert len(ids) + len(everything) == shard.rows, f"{shard.name}: every planned row has a feature or a reject"
        phi, weight = _stacked(parts, good, self._width())
        return Part(
            fingerprint=self.work.features[method].fingerprint,
            shard=shard.name,
            ids=ids,
            weight=weight,
            phi=phi,
            rejects=everything,
        )

    def features(
        self, methods: Sequence[Method], batch: Sequence[Sample], report: Callable[[float], None] = discard_report
    ) -> list[Features]:
        """The features of samples of one shape, for methods that share their states."""
        return self.compute(methods, self.encode(methods, batch), report)

    def encode(self, methods: Sequence[Method], batch: Sequence[Sample]) -> Batch:
        """Samples of one shape as the model reads them, with their inversion if such states are kept."""
        d, seed = self.denoiser, self.config.seed
        x_0, cond = encode_samples(d, batch)
        ids, captions = [sample.id for sample in batch], [sample.caption for sample in batch]
        training = training_batch(d, methods[0], ids, captions, x_0, cond, seed, self._negative_texts)
        if self.config.keep_states and methods[0].train.trajectory == "ddim_inversion":
            settings = feature_settings(self.config, methods[0], d, self.identity)
            training = Inversions(self.store, settings, methods[0].train).with_path(d, training, batch)
        return training

    def compute(
        self, methods: Sequence[Method], batch: Batch, report: Callable[[float], None] = discard_report
    ) -> list[Features]:
        """The features of encoded samples, for methods that share their states."""
        d, c = self.denoiser, self.config
        return train_features(d, c.projector, methods, batch, c.seed, self._workspace, report)

    def _width(self) -> int:
        return self.config.projector.width(sum(p.numel() for p in self.denoiser.parameters.values()))


def _stacked(parts: Sequence[Features], good: list[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """phi and weight of the usable rows, float32; no rows if the whole shard was rejected."""
    if not parts:
        return np.zeros((0, width), np.float32), np.zeros(0, np.float32)
    phi, weight = torch.cat([p.phi for p in parts]), torch.cat([p.weight for p in parts])
    return phi[good].float().numpy(), weight[good].float().numpy()


def _sorted_out(
    ready: Sequence[tuple[str, int]], parts: Sequence[Features], shard: Shard
) -> tuple[list[int], list[Reject]]:
    """The samples that have a feature, in the order of their rows, and rejects for the others.

    Args:
        ready: id and row of each sample.
        parts: their features, batch by batch.
    """
    reasons = [reason for part in parts for reason in reject_reasons(part)]
    rejects = [
        Reject(sample_id=name, source=shard.source, row=row, reason=why[0], message=why[1])
        for (name, row), why in zip(ready, reasons, strict=True)
        if why
    ]
    good = [i for i, why in enumerate(reasons) if why is None]
    return sorted(good, key=lambda i: ready[i][1]), rejects
