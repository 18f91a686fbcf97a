"""The causal test: what a model draws once it is trained from scratch without some of its images.

A retraining and its control start from the same weights and draw the same batches, but for the places of the images
that are left out (`training.refilled`); both draw their pictures from the same noise. So the pictures differ by what
was left out. For a concept, with the prompts that name it as targets and all others beside them,

    moved  = mean over targets of |x - x'|_2  -  mean over the others of |x - x'|_2
    lost   = mean over targets of (presence in x - presence in x')

x the control's pictures in [-1, 1] and x' the retrained model's, flat; presence is the probability that the judge of
the data set (`judge.py`) sees the concept. Same-noise L2 after D-TRAK (Zheng et al. 2024, section 5).
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.query import UNGUIDED
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import generate
from concept_trak.audit.mapper import Attempt, Mapper
from concept_trak.data.benchmarks.two_factors import Pair, TwoFactors, pair_caption
from concept_trak.evaluation.judge import load_judge, presence
from concept_trak.evaluation.retrieval import Cell, cells
from concept_trak.evaluation.training.benchmark_models import train_model
from concept_trak.evaluation.training.settings import TrainConfig
from concept_trak.models import load_model
from concept_trak.models.classifier import Classifier
from concept_trak.store.store import Store
from concept_trak.store.tables import from_columns, read_parquet, to_parquet


@dataclass(frozen=True)
class RetrainTask:
    """A model trained from `seed` without some images of its training set; without none it is a control."""

    seed: int
    without: tuple[str, ...] = ()
    """Ids, sorted: who leaves out the same images shares the retraining."""

    @property
    def label(self) -> str:
        return f"seed-{self.seed}"

    @property
    def samples(self) -> int:
        return 0


@dataclass(frozen=True)
class RetrainSettings:
    """What all retrainings of a test share: how their model is made, and how many pictures of each pair are drawn."""

    store: str
    folder: str
    """Where the pictures go, below the store."""
    made: TrainConfig
    samples: int
    threads: int = 1

    def file(self, item: RetrainTask) -> str:
        """Named by everything that decides the pictures."""
        made = {key: value for key, value in asdict(self.settings(item)).items() if key not in NO_MATTER}
        what = json.dumps([made, item.without, self.samples], sort_keys=True)
        return f"{self.folder}/{hashlib.sha256(what.encode()).hexdigest()[:16]}.parquet"

    def settings(self, item: RetrainTask) -> TrainConfig:
        """Weights and batches from the retraining's seed, on the images of the model it is about."""
        return replace(self.made, seed=item.seed, images_seed=self.made.drawing_seed)


NO_MATTER = ("out", "refresh", "judge_steps", "samples")
"""Settings of a training that do not move its weights."""


class RetrainWorker:
    """Trains a model from scratch and draws its pictures, to the store; nothing is trained twice."""

    def __init__(self, bench: RetrainSettings) -> None:
        torch.set_num_threads(bench.threads)
        self.bench, self.store = bench, Store(bench.store)

    def __call__(self, item: RetrainTask, attempt: Attempt) -> str:
        name, made = self.bench.file(item), self.bench.settings(item)
        if self.store.size(name) is None:
            with tempfile.TemporaryDirectory() as out:
                train_model(replace(made, refresh=float("inf")), Path(out), lambda line: None, item.without)
                pictures = draw_pictures(load_model(out, device=made.device), made.kinds, self.bench.samples)
            self.store.create(name, pictures_to_parquet(pictures))
        return name


Pictures = dict[Pair, Float[Tensor, "m 3 h w"]]
"""By pair, what a model draws for its caption, in [-1, 1]; the m noises are the same for all."""


def draw_pictures(
    denoiser: Denoiser, kinds: TwoFactors, samples: int, at_once: int = 256, seed: int = 0, path: Probe = UNGUIDED
) -> Pictures:
    """Unguided, down the 51-point grid (or as `path` says), from noises named by the seed and their number alone."""
    ids = tuple(f"picture-{i}" for _ in kinds.all_pairs for i in range(samples))
    cond = denoiser.encode([pair_caption(*pair) for pair in kinds.all_pairs for _ in range(samples)])
    batch, made = Batch(ids, cond, cond), list[Tensor]()
    for i in range(0, len(ids), at_once):
        x_0 = generate(denoiser, batch.rows(slice(i, i + at_once)), path, seed)
        made.append(denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1))
    return dict(zip(kinds.all_pairs, torch.cat(made).split(samples), strict=True))


KINDS = {"thing": "string", "colour": "string", "number": "int32", "height": "int32", "width": "int32",
         "pixels": "vector"}  # fmt: skip


def pictures_to_parquet(pictures: Pictures) -> bytes:
    """One row per picture, its pixels flat from [3, height, width]."""
    rows = [(*pair, i, *x.shape[1:], x.flatten().numpy()) for pair, xs in pictures.items() for i, x in enumerate(xs)]
    return to_parquet(from_columns(KINDS, dict(zip(KINDS, map(list, zip(*rows, strict=True)), strict=True))))


def pictures_from_parquet(data: bytes) -> Pictures:
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


def measure_effect(
    cell: Cell, kinds: TwoFactors, classifier: Classifier, control: Pictures, retrained: Pictures
) -> Effect:
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


@dataclass(frozen=True)
class CounterfactualConfig:
    store: str = "results/benchmark"
    """The folder of the benchmark."""
    name: str = "toy"
    """Its name: its rankings lie in benchmarks/<name>/tops.parquet."""
    folder: str = "results/models/toy-0"
    """Of one of its models, named as there."""
    arms: tuple[str, ...] = ("fit_trak", "concept_trak", "trak", "lookup", "random")
    """Whose first K are left out; `trak/concept` is a method asked with the concept query."""
    pairs: tuple[str, ...] = ("a red triangle",)
    """Captions of the pairs whose two factors are the concepts; empty is all."""
    shares: tuple[float, ...] = (0.9, 1.0)
    """K as shares of the images that show the concept, in 0 ... 1."""
    seeds: tuple[int, ...] = (1, 2)
    """Of the initial weights and the batches of retrainings."""
    samples: int = 32
    """Pictures per pair and retraining."""

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds or not self.shares:
            raise UserError("arms, seeds and shares must each have an entry")
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"shares={list(self.shares)}; expected numbers above 0, at most 1")
        if self.samples < 1:
            raise UserError(f"samples={self.samples}; expected at least 1")


def ranking_heads(config: CounterfactualConfig, made: TrainConfig, store: Store) -> dict[tuple[str, str], list[str]]:
    """By arm and concept the ids of the benchmark's ranking, best first; as many as there are carriers."""
    name = f"benchmarks/{config.name}/tops.parquet"
    if store.size(name) is None:
        raise UserError(f"{config.store}/{name} is not there; run python -m jobs.benchmark name={config.name} first")
    rows = [row for row in read_parquet(store.read(name)).to_pylist() if row["model"] == config.folder]
    found: dict[tuple[str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        arm = row["method"] + ("/concept" if row["asked"] == "concept" else "")
        found.setdefault((arm, row["concept"]), []).append(row["sample_id"])
    if not found:
        raise UserError(
            f"folder={config.folder!r} is none of the benchmark {config.name}; name it as models= did there"
        )
    if rows[0]["scored"] != made.images:
        raise UserError(
            f"the benchmark {config.name} scored {rows[0]['scored']} of the {made.images} training images; expected "
            "all, for those not scored teach the concept too: give it rows=<the model's images>"
        )
    return found


@dataclass(frozen=True)
class Removal:
    """One line of the result: what was left out, why, and from which seed the model was trained again."""

    arm: str
    cell: Cell
    share: float
    carriers: int
    """Images that show the concept."""
    retraining: RetrainTask


def removals_of(
    config: CounterfactualConfig, made: TrainConfig, tops: dict[tuple[str, str], list[str]]
) -> list[Removal]:
    """Every arm, concept, share and seed, in this order."""
    known = list(dict.fromkeys(arm for arm, _ in tops))
    if unknown := [arm for arm in config.arms if arm not in known]:
        raise UserError(f"arms: the benchmark has no {unknown[0]!r}; expected some of: {', '.join(known)}")
    asked = [c for c in cells(made.kinds) if not config.pairs or pair_caption(*c.pair) in config.pairs]
    if missing := [c.name for c in asked if (config.arms[0], c.name) not in tops] or ([""] * (not asked)):
        raise UserError(f"pairs={list(config.pairs)}: the benchmark asked about no such pair of {made.set} {missing}")
    return [
        Removal(arm, cell, share, len(top), RetrainTask(seed, tuple(sorted(top[: round(share * len(top))]))))
        for arm in config.arms
        for cell in asked
        for share in config.shares
        for seed in config.seeds
        for top in (tops[arm, cell.name],)
    ]


def effects(bench: RetrainSettings, model: str, cases: Sequence[Removal]) -> list[Effect]:
    """What each case's retraining did, against the control of its seed."""
    store, kinds, classifier = Store(bench.store), bench.made.kinds, load_judge(model, bench.made.kinds)
    seen: dict[RetrainTask, Any] = {}

    def pictures(item: RetrainTask) -> Any:
        if item not in seen:
            seen[item] = pictures_from_parquet(store.read(bench.file(item)))
        return seen[item]

    return [
        measure_effect(c.cell, kinds, classifier, pictures(RetrainTask(c.retraining.seed)), pictures(c.retraining))
        for c in cases
    ]


def retrain(config: CounterfactualConfig, bench: RetrainSettings, cases: Sequence[Removal], mapper: Mapper) -> None:
    """Train what is missing of the controls and of the retrainings, each once."""
    store, controls = Store(bench.store), [RetrainTask(seed) for seed in config.seeds]
    retrainings = dict.fromkeys([*controls, *(case.retraining for case in cases)])
    missing = [item for item in retrainings if store.size(bench.file(item)) is None]
    print(f"retrain    {len(retrainings)} models, {len(missing)} of them to train", flush=True)
    for _ in mapper("retrain", RetrainWorker, bench, missing) if missing else ():
        pass
