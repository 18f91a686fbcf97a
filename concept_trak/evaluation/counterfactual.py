"""The causal test: how a model's pictures change if it is trained from scratch without some of its images.

A retraining and its control start from the same weights and use the same batches, except that other images replace
those that are left out (`loop.replacement_rows`). Both generate their pictures from the same noise. The left-out images
are therefore the only cause of a difference. For a concept, whose targets are the prompts that name it,

    moved  = mean over targets of |x - x'|_2  -  mean over the other prompts of |x - x'|_2
    lost   = mean over targets of (presence in x - presence in x')

x is a flattened picture of the control in [-1, 1], x' the picture of the retrained model from the same noise, and
presence the probability of the concept under the judge of the data set (`judge.py`). The L2 distance for the same noise
is from D-TRAK (Zheng et al. 2024, section 5).
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.audit.mapper import Attempt, Mapper, Task
from concept_trak.data.benchmarks.two_factors import Pair, TwoFactors, pair_caption
from concept_trak.evaluation.judge import load_judge, presence
from concept_trak.evaluation.pictures import Pictures, draw_pictures, pictures_from_parquet, pictures_to_parquet
from concept_trak.evaluation.retrieval import Cell, cells
from concept_trak.evaluation.training.benchmark_models import train_model
from concept_trak.evaluation.training.settings import TrainConfig
from concept_trak.models import load_model
from concept_trak.models.classifier import Classifier
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet


@dataclass(frozen=True)
class RetrainTask(Task):
    """A training run from `seed` without the images `without`; a control is a run with all images.

    The ids are sorted, so that removals of the same images share the retraining.
    """

    seed: int
    without: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"seed-{self.seed}"


@dataclass(frozen=True)
class RetrainResult:
    """The file of the pictures, in the store."""

    file: str


@dataclass(frozen=True)
class RetrainSettings:
    """The settings that all retrainings of a test share.

    Attributes:
        folder: the folder of the pictures, relative to the store.
        training: the settings of the training of the model under test.
        samples: pictures of each pair.
    """

    store: str
    folder: str
    training: TrainConfig
    samples: int
    threads: int = 1

    def file(self, task: RetrainTask) -> str:
        """The file of a task's pictures, named by a hash of everything that decides them."""
        training = {key: value for key, value in asdict(self.training_of(task)).items() if key not in NO_MATTER}
        settings = json.dumps([training, task.without, self.samples], sort_keys=True)
        return f"{self.folder}/{hashlib.sha256(settings.encode()).hexdigest()[:16]}.parquet"

    def training_of(self, task: RetrainTask) -> TrainConfig:
        """The settings of a task's training: weights and batches from its seed, images of the model under test."""
        return replace(self.training, seed=task.seed, images_seed=self.training.drawing_seed)


NO_MATTER = ("out", "refresh", "judge_steps", "samples")
"""Settings of a training that do not change its weights."""


class RetrainWorker:
    """Trains a model from scratch and writes its pictures to the store, unless the store has them."""

    def __init__(self, settings: RetrainSettings) -> None:
        torch.set_num_threads(settings.threads)
        self.settings, self.store = settings, Store(settings.store)

    def __call__(self, task: RetrainTask, attempt: Attempt) -> RetrainResult:
        name, training = self.settings.file(task), self.settings.training_of(task)
        if self.store.size(name) is None:
            with tempfile.TemporaryDirectory() as out:
                train_model(replace(training, refresh=float("inf")), Path(out), lambda line: None, task.without)
                pictures = draw_pictures(load_model(out, device=training.device), training.kinds, self.settings.samples)
            self.store.create(name, pictures_to_parquet(pictures))
        return RetrainResult(name)


@dataclass(frozen=True)
class Effect:
    """The effect of a retraining on a concept.

    Distances are Euclidean, of pixels in [-1, 1]; presences are in [0, 1].
    """

    moved_target: float
    moved_other: float
    present: float
    """The concept's presence in the retrained model's pictures of the prompts that name it."""
    present_control: float
    kept_other: float
    """The mean presence, in the retrained model's pictures of the other prompts, of the value that the prompt names for
    the concept's factor."""
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
    """The effect on the concept of a cell: its factor, in any pair."""
    column = kinds.columns.index(cell.factor)
    targets = [pair for pair in kinds.all_pairs if pair[column] == cell.value]
    others = [pair for pair in kinds.all_pairs if pair[column] != cell.value]

    def moved(pairs: Sequence[Pair]) -> float:
        return _mean([(control[pair] - retrained[pair]).flatten(1).norm(dim=1) for pair in pairs])

    def mean_presence(pictures: Pictures, pairs: Sequence[Pair]) -> float:
        factor = ("thing", "colour")[column]
        return _mean([presence(classifier, pictures[pair], **{factor: pair[column]}) for pair in pairs])

    return Effect(
        moved_target=moved(targets),
        moved_other=moved(others),
        present=mean_presence(retrained, targets),
        present_control=mean_presence(control, targets),
        kept_other=mean_presence(retrained, others),
        kept_other_control=mean_presence(control, others),
    )


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.cat(list(values)).mean())


@dataclass(frozen=True)
class CounterfactualConfig:
    """A causal test of a benchmark's rankings."""

    store: str = "results/benchmark"
    """The folder of the benchmark."""
    name: str = "toy"
    """The benchmark's name: its rankings are in benchmarks/<name>/tops.parquet."""
    folder: str = "results/models/toy-0"
    """One of the benchmark's models, by the name that its `models` has."""
    rankers: tuple[str, ...] = ("fit_trak", "concept_trak", "trak", "lookup", "random")
    """Methods whose first K images are left out; `trak/concept` is the method trak with the concept query."""
    pairs: tuple[str, ...] = ("a red triangle",)
    """Captions of the pairs whose two factors are the concepts; empty means all pairs."""
    shares: tuple[float, ...] = (0.9, 1.0)
    """K, as shares of the images that show the concept, above 0 and at most 1."""
    seeds: tuple[int, ...] = (1, 2)
    """Seeds of the retrainings: of initial weights and batches."""
    samples: int = 32
    """Pictures per pair and retraining."""

    def __post_init__(self) -> None:
        if not self.rankers or not self.seeds or not self.shares:
            raise UserError("rankers, seeds and shares must each have an entry")
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"shares={list(self.shares)}; expected numbers above 0, at most 1")
        if self.samples < 1:
            raise UserError(f"samples={self.samples}; expected at least 1")


RankingHeads = dict[tuple[str, str], list[str]]
"""By ranker and concept, the first ids of the benchmark's ranking, best first; as many as images show the concept."""


def ranking_heads(config: CounterfactualConfig, training: TrainConfig, store: Store) -> RankingHeads:
    """The heads of the benchmark's rankings for the model.

    Raises:
        UserError: there are none, or the benchmark scored only a part of the training images.
    """
    name = f"benchmarks/{config.name}/tops.parquet"
    if store.size(name) is None:
        raise UserError(f"{config.store}/{name} does not exist; run python -m jobs.benchmark name={config.name} first")
    rows = [row for row in read_parquet(store.read(name)).to_pylist() if row["model"] == config.folder]
    if not rows:
        raise UserError(
            f"folder={config.folder!r} is not a model of the benchmark {config.name}; give one of its models="
        )
    if rows[0]["scored"] != training.images:
        raise UserError(
            f"the benchmark {config.name} scored {rows[0]['scored']} of the {training.images} training images; "
            "expected all, because the other images teach the concept too: run it with rows=<the model's images>"
        )
    heads: RankingHeads = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        ranker = row["method"] + ("/concept" if row["query_kind"] == "concept" else "")
        heads.setdefault((ranker, row["concept"]), []).append(row["sample_id"])
    return heads


@dataclass(frozen=True)
class Removal:
    """The removal of the first images of a ranking, and the retraining without them.

    Attributes:
        ranker: the ranking.
        cell: the concept.
        share: the number of removed images as a share of the carriers.
        carriers: the number of images that show the concept.
        retraining: the training run without the removed images.
    """

    ranker: str
    cell: Cell
    share: float
    carriers: int
    retraining: RetrainTask


def removals_of(config: CounterfactualConfig, training: TrainConfig, heads: RankingHeads) -> list[Removal]:
    """The removals for every ranker, concept, share and seed, in this order.

    Raises:
        UserError: the benchmark has no such ranker or pair.
    """
    rankers = list(dict.fromkeys(ranker for ranker, _ in heads))
    if unknown := [ranker for ranker in config.rankers if ranker not in rankers]:
        raise UserError(f"rankers: the benchmark has no {unknown[0]!r}; expected some of: {', '.join(rankers)}")
    selected = [c for c in cells(training.kinds) if not config.pairs or pair_caption(*c.pair) in config.pairs]
    if not selected or any((config.rankers[0], cell.name) not in heads for cell in selected):
        names = ", ".join(dict.fromkeys(name for _, name in heads))
        raise UserError(f"pairs={list(config.pairs)}: the benchmark has no such pair of {training.set}; it has {names}")
    return [
        _removal(ranker, cell, share, seed, heads[ranker, cell.name])
        for ranker in config.rankers
        for cell in selected
        for share in config.shares
        for seed in config.seeds
    ]


def _removal(ranker: str, cell: Cell, share: float, seed: int, head: Sequence[str]) -> Removal:
    removed = tuple(sorted(head[: round(share * len(head))]))
    return Removal(ranker=ranker, cell=cell, share=share, carriers=len(head), retraining=RetrainTask(seed, removed))


def retrain(
    config: CounterfactualConfig, settings: RetrainSettings, removals: Sequence[Removal], mapper: Mapper
) -> None:
    """Train the missing controls and retrainings, each once."""
    store, controls = Store(settings.store), [RetrainTask(seed) for seed in config.seeds]
    tasks = dict.fromkeys([*controls, *(removal.retraining for removal in removals)])
    missing = [task for task in tasks if store.size(settings.file(task)) is None]
    print(f"retrain    {len(tasks)} models, {len(missing)} of them to train", flush=True)
    for _ in mapper("retrain", RetrainWorker, settings, missing) if missing else ():
        pass


def effects(settings: RetrainSettings, model: str, removals: Sequence[Removal]) -> list[Effect]:
    """The effect of each removal's retraining, compared with the control of the same seed."""
    store, kinds = Store(settings.store), settings.training.kinds
    classifier = load_judge(model, kinds)
    pictures: Callable[[RetrainTask], Pictures] = cache(
        lambda task: pictures_from_parquet(store.read(settings.file(task)))
    )
    return [
        measure_effect(
            removal.cell,
            kinds,
            classifier,
            control=pictures(RetrainTask(removal.retraining.seed)),
            retrained=pictures(removal.retraining),
        )
        for removal in removals
    ]
