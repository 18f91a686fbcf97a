"""Baselines without gradients: rankings of the training samples for every concept.

Each baseline is a function (inputs, concept, m queries) -> scores [n, m].

| baseline   | ranks training samples by                                                                        |
|------------|--------------------------------------------------------------------------------------------------|
| random     | chance                                                                                           |
| agnostic   | the number of the query's factors in the image: the best without regard to the concept           |
| lookup     | whether their caption names the concept, with random order among equal samples                   |
| words      | the number of the prompt's words in their caption, with random order among equal samples         |
| pixels     | the cosine with the query's generated image, after the training mean is subtracted from both     |
| activation | the same cosine for the output of the network's middle at one noise level, mean over positions   |
| style      | the same cosine for the mean and deviation over positions, by channel (Huang and Belongie 2017)  |
| (a name)   | the same cosine for the embedding of a folder of weights, such as CLIP or DINOv2                 |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, negatives
from concept_trak.attribution.numerics import key
from concept_trak.attribution.query import UNGUIDED, query_batch
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise, generate
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.results import shows
from concept_trak.audit.worker import ModelWorker
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.evaluation.benchmark import PLAIN, GradeRow, RankingHead, grade_rows, write_ranking
from concept_trak.evaluation.caption_groups import caption_gains, carriers
from concept_trak.evaluation.retrieval import grade
from concept_trak.models.embedding import Embedder
from concept_trak.models.encode import encode_samples
from concept_trak.store.manifest import Audit

ACTIVATION_PROBE = Probe("forward_noise", "prediction", times=(300,))
"""The state of `activation`. The noise at this time hides fine texture but not the content of the image."""


def position_mean(out: Tensor) -> Float[Tensor, "b width"]:
    """The mean over positions of an output [b, channels, h, w] or [b, patches, width]."""
    return out.mean((2, 3)) if out.dim() == 4 else out.mean(1)


def position_statistics(out: Tensor) -> Float[Tensor, "b statistics"]:
    """Mean and standard deviation over positions of every channel: the statistics of style in AdaIN."""
    values = out.flatten(2) if out.dim() == 4 else out.mT
    return torch.cat([values.mean(2), values.std(2, correction=0)], 1)


@dataclass(frozen=True)
class BaselineInputs:
    """A model and its n training samples, each encoded once."""

    denoiser: Denoiser
    train: Sequence[Sample]
    seed: int

    @cached_property
    def batch(self) -> Batch:
        """The training samples as one batch."""
        d, captions, ids = self.denoiser, [s.caption for s in self.train], tuple(s.id for s in self.train)
        x_0, cond = encode_samples(d, self.train)
        return Batch(ids=ids, cond=cond, negative=negatives(d, ids, captions, self.seed), x_0=x_0)

    @cached_property
    def activations(self) -> Float[Tensor, "n width"]:
        """`middle_activations` of the training samples."""
        return self.middle_activations(self.batch)

    @cached_property
    def styles(self) -> Float[Tensor, "n statistics"]:
        """`position_statistics` of the middle activations of the training samples."""
        return self.middle_activations(self.batch, position_statistics)

    @cached_property
    def _images(self) -> dict[tuple[str, int, int], Tensor]:
        return {}

    def generated(self, concept: Concept, m: int) -> Batch:
        """The images of a concept's first m queries. Concepts with the same prompt share them, as the two of a pair."""
        batch, key = query_batch(self.denoiser, concept).rows(slice(0, m)), (concept.text, concept.seed, m)
        if key not in self._images:
            self._images[key] = generate(self.denoiser, batch, UNGUIDED, concept.seed)
        return replace(batch, x_0=self._images[key])

    @torch.no_grad()
    def middle_activations(
        self, batch: Batch, pool: Callable[[Tensor], Tensor] = position_mean, at_once: int = 100
    ) -> Float[Tensor, "b width"]:
        """The output of the network's middle at the state of `ACTIVATION_PROBE`, pooled over positions.

        Args:
            batch: the samples.
            pool: reduces the positions of an output.
            at_once: samples of one forward pass.
        """
        outputs: list[Tensor] = []
        hook = self.denoiser.middle.register_forward_hook(lambda module, args, out: outputs.append(pool(out)))
        try:
            for i in range(0, len(batch.ids), at_once):
                part = batch.rows(slice(i, i + at_once))
                for state in forward_noise(self.denoiser, part, ACTIVATION_PROBE, self.seed):
                    self.denoiser(state.x_t, state.t, state.batch.cond)
        finally:
            hook.remove()
        return torch.cat(outputs)


def random_order(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """Scores drawn by (seed, sample id, concept)."""
    rows = [np.random.default_rng(key(inputs.seed, s.id, concept.name)).random(m) for s in inputs.train]
    return torch.from_numpy(np.stack(rows))


def concept_agnostic(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """The number of labels of the image that the prompt names, with random order among equal samples."""
    labels = ({v for k, v in s.labels.items() if not k.startswith("said_")} for s in inputs.train)
    counts = torch.tensor([sum(_names(concept.text, v) for v in own) for own in labels], dtype=torch.float64)
    return counts[:, None] + 0.5 * random_order(inputs, concept, m)


def caption_lookup(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """1 if the caption has the concept's name, else 0, with random order among equal samples."""
    (name,) = set(concept.truth.values())
    named = torch.tensor([_names(s.caption, name) for s in inputs.train], dtype=torch.float64)
    return named[:, None] + 0.5 * random_order(inputs, concept, m)


def _names(text: str, name: str) -> bool:
    """Whether the text has the words of a name, one after the other."""
    return bool(name) and f" {name} " in f" {text} "


def word_overlap(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """The number of words of the prompt that the caption has, with random order among equal samples."""
    prompt = set(concept.text.split())
    counts = torch.tensor([len(prompt & set(s.caption.split())) for s in inputs.train], dtype=torch.float64)
    return counts[:, None] + 0.5 * random_order(inputs, concept, m)


def pixel_similarity(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """Cosine of the clean images, in the model's latent space."""
    return _cosine(inputs.batch.x_0, inputs.generated(concept, m).x_0)


def activation_similarity(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """Cosine of the middle activations."""
    return _cosine(inputs.activations, inputs.middle_activations(inputs.generated(concept, m)))


def style_similarity(inputs: BaselineInputs, concept: Concept, m: int) -> Float[Tensor, "n m"]:
    """Cosine of the channel statistics of the middle activations."""
    queries = inputs.middle_activations(inputs.generated(concept, m), position_statistics)
    return _cosine(inputs.styles, queries)


def embedding_similarity(inputs: BaselineInputs, concept: Concept, m: int, folder: str) -> Float[Tensor, "n m"]:
    """Cosine of the embeddings of the pictures by the weights in `folder`."""
    embedder, queries = Embedder(Path(folder), inputs.denoiser.device), inputs.generated(concept, m).x_0
    assert queries is not None, "queries have generated images"
    pictures = torch.stack([sample.content for sample in inputs.train])
    return _cosine(embedder(pictures), embedder(inputs.denoiser.to_pixels(queries)))


def _cosine(train: Tensor | None, queries: Tensor | None) -> Float[Tensor, "n m"]:
    assert train is not None, "training samples have images"
    assert queries is not None, "queries have generated images"
    a, b = train.flatten(1).double(), queries.flatten(1).double()
    mean = a.mean(0)
    return functional.normalize(a - mean) @ functional.normalize(b - mean).T


Baseline = Callable[[BaselineInputs, Concept, int], Tensor]
GRADIENT_FREE: dict[str, Baseline] = {
    "random": random_order,
    "agnostic": concept_agnostic,
    "lookup": caption_lookup,
    "words": word_overlap,
    "pixels": pixel_similarity,
    "activation": activation_similarity,
    "style": style_similarity,
}


def baseline(name: str, folder: str) -> Baseline:
    """The baseline of a name: that of an embedding if it has a folder of weights."""
    return partial(embedding_similarity, folder=folder) if folder else GRADIENT_FREE[name]


@dataclass(frozen=True)
class BaselineTask(Task):
    """One baseline against m queries of every concept, over the shards of a plan.

    An embedding has the folder of its weights; the other baselines have none.
    """

    baseline: str
    plan: tuple[Shard, ...]
    m: int
    folder: str = ""

    @property
    def label(self) -> str:
        return self.baseline


@dataclass(frozen=True)
class BaselineResult:
    """The grades of every concept and query; their damping is `PLAIN`."""

    rows: tuple[GradeRow, ...]


class BaselineWorker(ModelWorker):
    """Grades one baseline."""

    def __call__(self, task: BaselineTask, attempt: Attempt) -> BaselineResult:
        data, side = self.config.data, self.denoiser.resolution
        shards = map(self.index, task.plan)
        train = [s for shard in shards for s in samples(shard, data, side) if isinstance(s, Sample)]
        inputs, ids = BaselineInputs(self.denoiser, train, self.config.seed), [s.id for s in train]
        rows, heads, ranking = list[GradeRow](), list[RankingHead](), baseline(task.baseline, task.folder)
        for concept in self.config.concepts:
            relevant = np.array([shows(concept, s.labels) for s in train])
            scores = ranking(inputs, concept, task.m).cpu().double().numpy()
            gains = caption_gains(scores, carriers(concept, [s.labels for s in train]), ids)
            rows += grade_rows(grade(scores, relevant, ids), gains, concept.name, PLAIN, 0, relevant)
            heads.append(RankingHead.of(concept.name, PLAIN, scores, ids, relevant))
        write_ranking(Audit(self.store, self.config.audit), task.baseline, "none", heads)
        return BaselineResult(tuple(rows))
