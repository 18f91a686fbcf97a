"""Rankings that need no gradient, for every concept: what a method must beat, and what none of its kind can.

Each is a function (what is seen of the training samples, concept, m queries) -> scores [n, m].

| rival      | ranks training samples by                                                                       |
|------------|-------------------------------------------------------------------------------------------------|
| random     | nothing                                                                                         |
| agnostic   | how many of the query's factors they show: the best that ignores which of them is asked         |
| lookup     | whether their caption names the concept, in random order within                                 |
| pixels     | cosine with the query's generated image, both less the training mean                            |
| activation | the same of the output of the network's middle, averaged over places, at one noise level        |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, negatives
from concept_trak.attribution.numerics import key
from concept_trak.attribution.query import UNGUIDED, query_batch
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise, generate
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.results import shows
from concept_trak.audit.worker import ModelWorker
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.evaluation.benchmark import PLAIN, GradeRow, RankingHead, grade_rows, write_ranking
from concept_trak.evaluation.retrieval import grade
from concept_trak.models.encode import encode_samples
from concept_trak.store.manifest import Audit

ACTIVATION_PROBE = Probe("forward_noise", "prediction", times=(300,))
"""Where `activation` looks: noise hides fine texture there and leaves what is shown."""


@dataclass(frozen=True)
class BaselineInputs:
    """A model and its training samples, n of them, each encoded once."""

    denoiser: Denoiser
    train: Sequence[Sample]
    seed: int

    @cached_property
    def batch(self) -> Batch:
        d, captions, ids = self.denoiser, [s.caption for s in self.train], tuple(s.id for s in self.train)
        x_0, cond = encode_samples(d, self.train)
        return Batch(ids, cond, negatives(d, ids, captions, self.seed), x_0)

    @cached_property
    def seen(self) -> Float[Tensor, "n width"]:
        return self.looked_at(self.batch)

    @cached_property
    def _made(self) -> dict[tuple[str, int, int], Tensor]:
        return {}

    def generated(self, concept: Concept, m: int) -> Batch:
        """The images of a concept's first m queries; concepts with one prompt, as of one pair, share them."""
        batch, asked = query_batch(self.denoiser, concept).rows(slice(0, m)), (concept.text, concept.seed, m)
        if asked not in self._made:
            self._made[asked] = generate(self.denoiser, batch, UNGUIDED, concept.seed)
        return replace(batch, x_0=self._made[asked])

    @torch.no_grad()
    def looked_at(self, batch: Batch, at_once: int = 100) -> Float[Tensor, "b width"]:
        """The middle's output at the state of `SEEN`, averaged over places."""
        kept: list[Tensor] = []
        hook = self.denoiser.middle.register_forward_hook(lambda module, args, out: kept.append(_pooled(out)))
        try:
            for i in range(0, len(batch.ids), at_once):
                for state in forward_noise(
                    self.denoiser, batch.rows(slice(i, i + at_once)), ACTIVATION_PROBE, self.seed
                ):
                    self.denoiser(state.x_t, state.t, state.batch.cond)
        finally:
            hook.remove()
        return torch.cat(kept)


def random_order(sight: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    rows = [np.random.default_rng(key(sight.seed, s.id, concept.name)).random(m) for s in sight.train]
    return torch.from_numpy(np.stack(rows))


def concept_agnostic(sight: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    said = set(concept.text.split())
    shown = [len(said & {v for k, v in s.labels.items() if not k.startswith("said_")}) for s in sight.train]
    return torch.tensor(shown, dtype=torch.float64)[:, None] + 0.5 * random_order(sight, concept, m)


def caption_lookup(sight: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    (word,) = set(concept.truth.values())
    named = torch.tensor([word in s.caption.split() for s in sight.train], dtype=torch.float64)
    return named[:, None] + 0.5 * random_order(sight, concept, m)


def pixel_similarity(sight: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    return _cosine(sight.batch.x_0, sight.generated(concept, m).x_0)


def activation_similarity(sight: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    return _cosine(sight.seen, sight.looked_at(sight.generated(concept, m)))


def _pooled(out: Tensor) -> Float[Tensor, "b width"]:
    """[b, channels, h, w] or [b, patches, width] to [b, width]."""
    return out.mean((2, 3)) if out.dim() == 4 else out.mean(1)


def _cosine(train: Tensor | None, queries: Tensor | None) -> Float[Tensor, "n m"]:
    assert train is not None, "training samples have images"
    assert queries is not None, "queries have generated images"
    a, b = train.flatten(1).double(), queries.flatten(1).double()
    middle = a.mean(0)
    return torch.nn.functional.normalize(a - middle) @ torch.nn.functional.normalize(b - middle).T


GRADIENT_FREE: dict[str, Callable[[BaselineInputs, Concept, int], Tensor]] = {
    "random": random_order,
    "agnostic": concept_agnostic,
    "lookup": caption_lookup,
    "pixels": pixel_similarity,
    "activation": activation_similarity,
}


@dataclass(frozen=True)
class BaselineTask:
    """One rival against m queries of every concept, over the shards of a plan."""

    rival: str
    plan: tuple[Shard, ...]
    m: int

    @property
    def label(self) -> str:
        return self.rival

    @property
    def samples(self) -> int:
        return 0


class BaselineWorker(ModelWorker):
    """The grades of a rival: rows like those of `trial.Grade`, with the plain inner product's damping."""

    def __call__(self, item: BaselineTask, attempt: Attempt) -> list[GradeRow]:
        data, side = self.config.data, self.denoiser.resolution
        train = [s for shard in item.plan for s in samples(shard, data, side) if isinstance(s, Sample)]
        sight, ids = BaselineInputs(self.denoiser, train, self.config.seed), [s.id for s in train]
        rows, tops = list[GradeRow](), list[RankingHead]()
        for concept in self.config.concepts:
            relevant = np.array([shows(concept, s.labels) for s in train])
            scores = GRADIENT_FREE[item.rival](sight, concept, item.m).cpu().double().numpy()
            rows += grade_rows(grade(scores, relevant, ids), concept.name, PLAIN, 0, relevant)
            tops.append(RankingHead.of(concept.name, PLAIN, scores, ids, relevant))
        write_ranking(Audit(self.store, self.config.audit), item.rival, "none", tops)
        return rows
