"""The causal test: what a model draws once it is trained from scratch without some of its images.

A retraining and its control start from the same weights and draw the same batches, but for the places of the images
that are left out (`training.refilled`); both draw their pictures from the same noise. So the pictures differ by what
was left out. For a concept, with the prompts that name it as targets and all others beside them,

    moved  = mean over targets of |x - x'|_2  -  mean over the others of |x - x'|_2
    lost   = mean over targets of (presence in x - presence in x')

x the control's pictures in [-1, 1] and x' the retrained model's, flat; presence is the probability that the judge of
the data set (`classifier.py`) sees the concept. Same-noise L2 after D-TRAK (Zheng et al. 2024, section 5).
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import classifier as judge
from concept_trak.asking import UNGUIDED
from concept_trak.classifier import Classifier, presence
from concept_trak.data.two_factors import Pair, TwoFactors, caption
from concept_trak.denoiser import Denoiser
from concept_trak.models import load
from concept_trak.probe import Probe
from concept_trak.retrieval import Cell
from concept_trak.schooling import TrainConfig, train_model
from concept_trak.stages import Attempt
from concept_trak.state import Batch
from concept_trak.store.commit import Store
from concept_trak.store.tables import from_columns, read_parquet, to_parquet
from concept_trak.trajectory import generate


@dataclass(frozen=True)
class Retraining:
    """A model trained from `seed` without some images of its training set; without none it is a control."""

    seed: int
    without: tuple[str, ...] = ()
    """Ids, sorted: who leaves out the same images shares the retraining."""


@dataclass(frozen=True)
class Bench:
    """What all retrainings of a test share: how their model is made, and how many pictures of each pair are drawn."""

    store: str
    folder: str
    """Where the pictures go, below the store."""
    made: TrainConfig
    samples: int
    threads: int = 1

    def file(self, item: Retraining) -> str:
        """Named by everything that decides the pictures."""
        made = {key: value for key, value in asdict(self.settings(item)).items() if key not in NO_MATTER}
        what = json.dumps([made, item.without, self.samples], sort_keys=True)
        return f"{self.folder}/{hashlib.sha256(what.encode()).hexdigest()[:16]}.parquet"

    def settings(self, item: Retraining) -> TrainConfig:
        """Weights and batches from the retraining's seed, on the images of the model it is about."""
        return replace(self.made, seed=item.seed, images_seed=self.made.drawn)


NO_MATTER = ("out", "refresh", "judge_steps", "samples")
"""Settings of a training that do not move its weights."""


class Retrain:
    """Trains a model from scratch and draws its pictures, to the store; nothing is trained twice."""

    def __init__(self, bench: Bench) -> None:
        torch.set_num_threads(bench.threads)
        self.bench, self.store = bench, Store(bench.store)

    def __call__(self, item: Retraining, attempt: Attempt) -> str:
        name, made = self.bench.file(item), self.bench.settings(item)
        if self.store.size(name) is None:
            with tempfile.TemporaryDirectory() as out:
                train_model(replace(made, refresh=float("inf")), Path(out), lambda line: None, item.without)
                pictures = drawn(load(out, device=made.device), made.kinds, self.bench.samples)
            self.store.create(name, encoded(pictures))
        return name


Pictures = dict[Pair, Float[Tensor, "m 3 h w"]]
"""By pair, what a model draws for its caption, in [-1, 1]; the m noises are the same for all."""


def drawn(
    denoiser: Denoiser, kinds: TwoFactors, samples: int, at_once: int = 256, seed: int = 0, path: Probe = UNGUIDED
) -> Pictures:
    """Unguided, down the 51-point grid (or as `path` says), from noises named by the seed and their number alone."""
    ids = tuple(f"picture-{i}" for _ in kinds.all_pairs for i in range(samples))
    cond = denoiser.encode([caption(*pair) for pair in kinds.all_pairs for _ in range(samples)])
    batch, made = Batch(ids, cond, cond), list[Tensor]()
    for i in range(0, len(ids), at_once):
        x_0 = generate(denoiser, batch.rows(slice(i, i + at_once)), path, seed)
        made.append(denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1))
    return dict(zip(kinds.all_pairs, torch.cat(made).split(samples), strict=True))


KINDS = {"thing": "string", "colour": "string", "number": "int32", "height": "int32", "width": "int32",
         "pixels": "vector"}  # fmt: skip


def encoded(pictures: Pictures) -> bytes:
    """One row per picture, its pixels flat from [3, height, width]."""
    rows = [(*pair, i, *x.shape[1:], x.flatten().numpy()) for pair, xs in pictures.items() for i, x in enumerate(xs)]
    return to_parquet(from_columns(KINDS, dict(zip(KINDS, map(list, zip(*rows, strict=True)), strict=True))))


def decoded(data: bytes) -> Pictures:
    """What `encoded` wrote."""
    found: dict[Pair, list[Tensor]] = {}
    for row in read_parquet(data).to_pylist():
        x = torch.tensor(row["pixels"]).view(3, row["height"], row["width"])
        found.setdefault((row["thing"], row["colour"]), []).append(x)
    return {pair: torch.stack(xs) for pair, xs in found.items()}


@dataclass(frozen=True)
class Effect:
    """What a retraining did to a concept. Distances are Euclidean, of pixels in [-1, 1]; presences in [0, 1]."""

    moved_target: float
    moved_other: float
    present: float
    """The concept's presence in the retrained model's pictures of the prompts that name it."""
    present_control: float
    kept_other: float
    """How often the other prompts still show what they name of the concept's factor."""
    kept_other_control: float

    @property
    def moved(self) -> float:
        return self.moved_target - self.moved_other

    @property
    def lost(self) -> float:
        return self.present_control - self.present


def effect(cell: Cell, kinds: TwoFactors, classifier: Classifier, control: Pictures, retrained: Pictures) -> Effect:
    """The measures of a concept, the factor of a cell, whatever its pair."""
    place = kinds.columns.index(cell.factor)
    targets = [pair for pair in kinds.all_pairs if pair[place] == cell.value]
    others = [pair for pair in kinds.all_pairs if pair[place] != cell.value]
    moved = [_mean([(control[p] - retrained[p]).flatten(1).norm(dim=1) for p in pairs]) for pairs in (targets, others)]
    shown = [
        _mean([presence(classifier, pictures[p], **{name: p[place]}) for p in pairs])
        for pairs in (targets, others)
        for pictures in (retrained, control)
        for name in (("thing", "colour")[place],)
    ]
    return Effect(*moved, *shown)


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.cat(list(values)).mean())


def judge_of(folder: str, kinds: TwoFactors) -> Classifier:
    """The judge that stands beside a model."""
    return judge.load(Path(folder) / "classifier.safetensors", kinds)
