"""A model of the benchmark in the making: its settings, the pipeline it starts as, its training set, its fit.

`jobs.train` makes the models that are compared this way, and a causal test makes them again without some images.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import SETS, TwoFactors, pair_caption
from concept_trak.evaluation import judge
from concept_trak.evaluation.training.loop import Examples, Progress, TextConditioned, dropout, fit, refilled
from concept_trak.evaluation.training.optim import Recipe
from concept_trak.models import load, pixart, small, text_to_image
from concept_trak.models.small import PredictionType, TransformerSize

ASKS = {"unet": text_to_image.predict_text_to_image, "transformer": pixart.predict_pixart}
"""The networks to train, and how each is asked."""


@dataclass(frozen=True)
class TrainConfig:
    """What `train` needs; the defaults are the run behind `assets/demo`."""

    out: str = "assets/demo"
    set: str = "shapes3"
    """shapes3, shapes2, shapes2_paper or digits."""
    network: str = "unet"
    """unet (1.0 M parameters) or transformer (1.2 M, unless its size is given)."""
    size: TransformerSize = field(default_factory=TransformerSize)
    """transformer: its layers, heads, and the width of a head."""
    predicts: PredictionType = "v_prediction"
    """transformer: v_prediction or epsilon."""
    seed: int = 0
    """Names the initial weights and what every step draws; and the images, unless `images_seed` does."""
    images_seed: int = -1
    """Names the training images; -1 is `seed`."""
    steps: int = 6000
    """0 writes the initial weights: a control, since nothing was taught."""
    batch: int = 16
    learning_rate: float = 1.2e-3
    warm_up: int = 100
    """Steps before the learning rate reaches its peak."""
    images: int = 20_000
    """Training images, all drawn up front; those of held-out combinations are never among them."""
    resolution: int = 0
    """Side of an image; 0 is the data set's own."""
    dropped: float = 0.15
    """Probability that a caption loses a factor, for each factor and for both at once; 0 keeps every caption whole."""
    wrong: float = 0.0
    """Probability that a training image has the caption of another combination. With 1 - 1/n of the n that training
    knows (2/3 of shapes2) captions are shuffled: they say nothing about their image."""
    optimizer: str = "adamw"
    """adamw, or muon for the matrices inside the network."""
    decay: float = 0.998
    """Of the moving average of the weights, which is what is kept; 0 keeps the last."""
    focus: float = 0.0
    """Share of the training times drawn from the middle ones alone."""
    judge_steps: int = 600
    samples: int = 64
    """Images generated per combination and guidance to measure the model."""
    refresh: float = 120.0
    """Seconds between refreshes of `out` during training."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for key, value, known in (("set", self.set, SETS), ("network", self.network, ASKS)):
            if value not in known:
                raise ValueError(f"{key}={value!r}; expected one of: {', '.join(known)}")
        if self.steps < 0 or self.images < 1:
            raise ValueError(f"steps={self.steps}, images={self.images}; expected steps >= 0 and images >= 1")

    @property
    def kinds(self) -> TwoFactors:
        return SETS[self.set]

    @property
    def drawn(self) -> int:
        """The seed of the training images."""
        return self.seed if self.images_seed < 0 else self.images_seed

    @property
    def shuffled(self) -> bool:
        """Whether captions say nothing about their image (to three digits)."""
        return abs(self.wrong - (1 - 1 / len(self.kinds.pairs))) < 1e-3

    @property
    def recipe(self) -> Recipe:
        """The numbers of the fit."""
        predicts = self.predicts if self.network == "transformer" else "v_prediction"
        return Recipe(
            self.seed,
            self.steps,
            self.batch,
            self.learning_rate,
            self.warm_up,
            self.decay,
            prediction_type=predicts,
            optimizer=self.optimizer,
            focus=self.focus,
        )

    @property
    def side(self) -> int:
        return self.resolution or self.kinds.resolution


def untrained(config: TrainConfig) -> Any:
    """The pipeline that training starts from; the same for the same seed."""
    if config.network == "unet":
        return small.pixel_pipeline(config.seed, config.side)
    words = ("a", *config.kinds.colours, *config.kinds.things)
    return small.patch_pipeline(config.seed, words, config.side, config.size, config.predicts)


def listening(config: TrainConfig, pipeline: Any) -> TextConditioned:
    """The networks of a pipeline as one to fit."""
    return TextConditioned(getattr(pipeline, config.network), pipeline.text_encoder, ASKS[config.network])


def examples(config: TrainConfig, tokenizer: Any, without: Collection[str] = ()) -> Examples:
    """The training set: drawings without the held-out combinations, each with its four captions in tokens.

    `without`: ids of images that are left out; others take their places.
    """
    images, drawn = arrays(config.drawn, 0, config.images, config.kinds, config.side, config.wrong)
    rows = refilled(np.array([d.id in without for d in drawn]))
    said = [drawn[row].said for row in rows]
    captions = [pair_caption(t, c) for thing, colour in said for t in (thing, None) for c in (colour, None)]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    return Examples(torch.from_numpy(images[rows]), tokens.view(len(rows), 4, -1), dropout(config.dropped))


def train_model(config: TrainConfig, out: Path, report: Callable[[str], None], without: Collection[str] = ()) -> None:
    """Fits the pipeline, without some of its images, and keeps its moving average in `out`; the initial weights where
    there are no steps."""
    pipeline, average = untrained(config), untrained(config)
    if config.steps == 0:
        report("no steps: the initial weights are kept")
        return average.save_pretrained(out)
    alphas = pipeline.scheduler.alphas_cumprod.double()
    network, data = listening(config, pipeline).to(config.device), examples(config, pipeline.tokenizer, without)
    losses, refreshed = [], time.monotonic()
    for progress in fit(network, data, alphas.sqrt(), (1 - alphas).sqrt(), config.recipe):
        losses.append(progress.loss)
        if progress.step % 50 == 0:
            report(f"step {progress.step}: loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
        if time.monotonic() - refreshed > config.refresh or progress.step == config.steps - 1:
            write(progress, listening(config, average), average, out)
            refreshed = time.monotonic()


def write(progress: Progress, network: TextConditioned, pipeline: Any, out: Path) -> None:
    """The moving average of `progress`, moved into `pipeline`, whose networks `network` joins, and saved."""
    network.load_state_dict(progress.average.state_dict())
    pipeline.save_pretrained(out)


def describe(config: TrainConfig, classifier: judge.Classifier, right: float, seconds: int) -> dict[str, Any]:
    """How the model in `out` was made, in how many seconds, and what it and its judge are worth."""
    return {
        **made_how(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "judge_accuracy": right,
        "held_out": [pair_caption(*pair) for pair in config.kinds.held_out],
        "samples_per_combination": config.samples,
        "shows_both_factors": measure(config, classifier, load(config.out, device=config.device)),
    }


def made_how(config: TrainConfig) -> dict[str, Any]:
    """What repeats a run, and whether anything was trained in it."""
    return {
        "command": command(config),
        "settings": {name: value for name, value in asdict(config).items() if name != "out"},
        "weights": f"after {config.steps} steps" if config.steps else "initial: never trained",
    }


def train_judge(config: TrainConfig, out: Path) -> tuple[judge.Classifier, float]:
    """Trains and saves the classifier; returns it with its accuracy on 4096 drawings that it was not trained on."""
    torch.manual_seed(config.seed)
    classifier = judge.Classifier(config.kinds)
    for _ in judge.fit(classifier, config.seed + 1, config.judge_steps, resolution=config.side):
        pass
    judge.save_classifier(classifier, out / "classifier.safetensors")
    classifier = judge.load_classifier(out / "classifier.safetensors", config.kinds)
    pixels, labels = judge.drawings(config.seed + 2, 0, 4096, config.kinds, config.side)
    thing, colour = (logits.argmax(1) for logits in classifier(pixels))
    right = (thing == labels[:, 0]) & (colour == labels[:, 1])
    return classifier, right.float().mean().item()


def measure(config: TrainConfig, classifier: judge.Classifier, denoiser: Denoiser) -> dict[str, dict[str, float]]:
    """By guidance and caption, the share of generated images that show what was asked for, held out or not."""
    strengths = (
        (1.0, 2.0) if config.dropped else (1.0,)
    )  # guidance needs a negative, and "" is none if never trained on
    pairs = config.kinds.all_pairs
    return {
        f"guidance {guidance:g}": judge.obedience(classifier, denoiser, pairs, config.samples, guidance, config.seed)
        for guidance in strengths
    }


def command(config: TrainConfig) -> str:
    """The command line that repeats this run, to whatever `out`."""
    usual = TrainConfig(out=config.out)
    changed = {f.name: v for f in fields(config) if (v := getattr(config, f.name)) != getattr(usual, f.name)}
    given = [f"{name}={value}" for name, value in changed.items() if name != "size"]
    return " ".join(["python -m jobs.train", *given, *_sizes(config.size, usual.size)])


def _sizes(size: TransformerSize, usual: TransformerSize) -> list[str]:
    return [f"size.{name}={value}" for name, value in asdict(size).items() if value != getattr(usual, name)]
