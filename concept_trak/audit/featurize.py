"""The work of one shard: read, encode, invert, pull back, project, commit.

Only file names and small records cross machines; features go to the store and are read from it.
"""

import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Denoiser, negative_count, negatives
from concept_trak.attribution.features import Features, FeatureSpec, features_of_each
from concept_trak.attribution.method import Method
from concept_trak.attribution.state import Batch
from concept_trak.audit.inversion_cache import Inversions
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.plan import feature_settings
from concept_trak.audit.worker import ModelWorker
from concept_trak.data.sample import Sample, batches, samples
from concept_trak.data.shard import Shard
from concept_trak.store.part import Part, Reject
from concept_trak.store.prefetch import prefetch
from concept_trak.store.records import Record, commit_part, find_record


@dataclass(frozen=True)
class FeaturizeTask:
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
    """One shard: read, invert, pull back, project, commit.

    While one batch is computed the next is read and decoded; no more of the shard's images are in memory.
    """

    def __call__(self, task: FeaturizeTask, attempt: Attempt) -> FeaturizeResult:
        # Since this run was planned, a worker that died, or another audit of the same data, may have done it.
        existing = {m: find_record(self.store, self.work.fingerprints[m], task.shard.name) for m in task.methods}
        records = {m: record for m, record in existing.items() if record is not None}
        if missing := [m for m in task.methods if m not in records]:
            records |= self._computed(missing, task.shard, attempt)
        return FeaturizeResult(tuple(records[m] for m in task.methods))

    def _computed(self, methods: list[str], shard: Shard, attempt: Attempt) -> dict[str, Record]:
        start, ready, features, rejects = time.monotonic(), [], [], []
        read = samples(shard, self.config.data, self.denoiser.resolution)
        for batch in prefetch(batches(read, self.batch_size(attempt))):
            known = [self.accepted(s, shard) for s in batch]
            rejects += [one for one in known if isinstance(one, Reject)]
            for usable in batches_of_one_shape(one for one in known if isinstance(one, Sample)):
                features.append(self.features([self.config.methods[m] for m in methods], usable))
                ready += [(one.id, one.row) for one in usable]
        seconds, kind, records = (time.monotonic() - start) / len(methods), self.config.feature, {}
        for i, method in enumerate(methods):
            part = self._part(method, shard, ready, [each[i] for each in features], rejects)
            records[method] = commit_part(
                self.store, part, kind.dtype, kind.encoding, seconds, attempt.number, socket.gethostname()
            )
        return records

    def accepted(self, sample: Sample | Reject, shard: Shard) -> Sample | Reject:
        """The sample, or a reject if its caption is no condition of the model."""
        if isinstance(sample, Reject):
            return sample
        try:
            self.denoiser.spelled(sample.caption)
        except UserError as error:
            return Reject(sample.id, shard.source, sample.row, "no_class", str(error)[:300])
        return sample

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
        phi, weight = _stacked(parts, good, self._width())
        return Part(self.work.fingerprints[method], shard.name, ids, weight, phi, everything)

    def features(self, rows: Sequence[Method], ready: Sequence[Sample]) -> list[Features]:
        d, captions = self.denoiser, [s.caption for s in ready]
        ids = tuple(s.id for s in ready)
        x_0, cond = encode_samples(d, ready)
        turns = range(negative_count(d, rows[0].train.negatives))
        first, *others = [negatives(d, ids, captions, self.config.seed, turn) for turn in turns]
        batch = Batch(ids, cond, first, x_0, others=tuple(others))
        if self.config.keep_states and rows[0].train.trajectory == "ddim_inversion":
            settings = feature_settings(self.config, rows[0], d, self.identity)
            batch = Inversions(self.store, settings, rows[0].train).known(d, batch, ready)
        sides = [FeatureSpec(row.train, row.unit, row.weight, row.over) for row in rows]
        features = features_of_each(d, self.config.projector, sides, batch, self.config.seed)
        return [Features(one.phi.cpu(), one.weight, one.states) for one in features]

    def _width(self) -> int:
        return self.config.projector.width(sum(p.numel() for p in self.denoiser.parameters.values()))


def _stacked(parts: Sequence[Features], good: list[int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """phi and weight of the good rows, float32; no rows when a whole shard was rejected."""
    if not parts:
        return np.zeros((0, width), np.float32), np.zeros(0, np.float32)
    phi, weight = torch.cat([p.phi for p in parts]), torch.cat([p.weight for p in parts])
    return phi[good].float().numpy(), weight[good].float().numpy()


def _sorted_out(
    ready: Sequence[tuple[str, int]], parts: Sequence[Features], shard: Shard
) -> tuple[list[int], list[Reject]]:
    """Positions of the samples (id, row) that have a feature, and rejects for those without."""
    good: list[int] = []
    bad: list[Reject] = []
    states = [int(n) for p in parts for n in p.states]
    finite = [bool(b) for p in parts for b in torch.isfinite(p.phi).all(1) & torch.isfinite(p.weight)]
    for i, (sample, row) in enumerate(ready):
        if not finite[i]:
            why = "its gradient has an infinite or undefined number"
            bad.append(Reject(sample, shard.source, row, "not_finite", why))
        elif states[i] == 0:
            why = "its condition equals the model's negative at every state, so its reward has no direction"
            bad.append(Reject(sample, shard.source, row, "no_direction", why))
        else:
            good.append(i)
    return sorted(good, key=lambda i: ready[i][1]), bad


def encode_samples(denoiser: Denoiser, samples: Sequence[Sample]) -> tuple[Tensor, Condition]:
    """x_0 [b, c, h, w] and the condition of samples of one shape.

    Raises:
        UserError: what the data bring along does not fit the model.
    """
    if samples[0].precomputed is None:
        pixels = torch.stack([_pixels(s) for s in samples])
        return denoiser.to_latent(_there(pixels, denoiser)), denoiser.encode([s.caption for s in samples])
    latents = [s.precomputed.latent for s in samples if s.precomputed]
    conditions = [s.precomputed.condition for s in samples if s.precomputed]
    cond = {name: _there(torch.stack([c[name] for c in conditions]), denoiser) for name in conditions[0]}
    _require_fit(denoiser, latents[0], cond)
    return _there(torch.stack(latents), denoiser), cond


def _require_fit(denoiser: Denoiser, latent: Tensor, cond: Condition) -> None:
    expected = denoiser.encode([""])
    given = {"latents": latent.shape[:1], **{name: value.shape[1:] for name, value in cond.items()}}
    needed = {"latents": torch.Size(denoiser.shape[:1]), **{name: v.shape[1:] for name, v in expected.items()}}
    if given != needed:
        there, wanted = (
            ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) for shapes in (given, needed)
        )
        raise UserError(
            f"the precomputed latents and embeddings do not fit the model: they have {there} (channels, and the shape "
            f"of each part of a condition), the model reads {wanted}; encode them with this model"
        )


def _pixels(sample: Sample) -> Tensor:
    assert sample.pixels is not None, "a sample has pixels, or a latent"
    return sample.pixels


def _there(tensor: Tensor, denoiser: Denoiser) -> Tensor:
    """On the model's device, and floating-point numbers in its precision."""
    return tensor.to(denoiser.device, denoiser.dtype if tensor.is_floating_point() else None)


def batches_of_one_shape(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples of one shape together, in order: one batch each."""
    by_shape: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        by_shape.setdefault(sample.shape, []).append(sample)
    return list(by_shape.values())
