"""Train a model of the benchmark and its judge: python -m jobs.train [key=value ...]

Writes to `out` a diffusers pipeline directory, `classifier.safetensors`, and `training.json`, which says how they were
made and how well the model does what it is asked, combination by combination. `out` is refreshed while training runs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from concept_trak import classifier as judge
from concept_trak.data.synthetic import arrays
from concept_trak.data.two_factors import SETS, TwoFactors, caption
from concept_trak.models import small
from concept_trak.models.text_to_image import NETWORKS, TextToImage
from concept_trak.training import Examples, Progress, Recipe, TextConditioned, dropout, fit
from jobs.configure import main


@dataclass(frozen=True)
class TrainConfig:
    """What `train` needs; the defaults are the run behind `assets/demo`."""

    out: str = "assets/demo"
    set: str = "shapes3"
    """shapes3, shapes2 or digits."""
    network: str = "unet"
    """unet (1.0 M parameters) or transformer (1.2 M)."""
    seed: int = 0
    steps: int = 6000
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
    """Probability that a training image has the caption of another combination."""
    optimizer: str = "adamw"
    """adamw, or muon for the matrices inside the network."""
    focus: float = 0.0
    """Share of the training times drawn from the middle ones alone."""
    judge_steps: int = 600
    samples: int = 64
    """Images generated per combination and guidance to measure the model."""
    refresh: float = 120.0
    """Seconds between refreshes of `out` during training."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for key, value, known in (("set", self.set, SETS), ("network", self.network, NETWORKS)):
            if value not in known:
                raise ValueError(f"{key}={value!r}; expected one of: {', '.join(known)}")

    @property
    def kinds(self) -> TwoFactors:
        return SETS[self.set]

    @property
    def side(self) -> int:
        return self.resolution or self.kinds.resolution


def train(config: TrainConfig, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains, measures and writes everything; returns what training.json holds."""
    out, start = Path(config.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    classifier, right = train_judge(config, out)
    report(f"judge: {right:.4f} right on fresh drawings, {time.monotonic() - start:.0f} s")
    train_model(config, out, lambda line: report(f"{line}, {time.monotonic() - start:.0f} s"))
    record = describe(config, classifier, right, seconds=round(time.monotonic() - start))
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    report(json.dumps(record["shows_both_factors"], indent=2))
    return record


def describe(config: TrainConfig, classifier: judge.Classifier, right: float, seconds: int) -> dict[str, Any]:
    """How the model in `out` was made, in how many seconds, and what it and its judge are worth."""
    return {
        "command": command(config),
        "settings": {name: value for name, value in asdict(config).items() if name != "out"},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "judge_accuracy": right,
        "held_out": [caption(*pair) for pair in config.kinds.held_out],
        "samples_per_combination": config.samples,
        "shows_both_factors": measure(config, classifier, TextToImage(config.out, device=config.device)),
    }


def train_judge(config: TrainConfig, out: Path) -> tuple[judge.Classifier, float]:
    """Trains and saves the classifier; returns it with its accuracy on 4096 drawings that it was not trained on."""
    torch.manual_seed(config.seed)
    classifier = judge.Classifier(config.kinds)
    for _ in judge.fit(classifier, config.seed + 1, config.judge_steps, resolution=config.side):
        pass
    judge.save(classifier, out / "classifier.safetensors")
    classifier = judge.load(out / "classifier.safetensors", config.kinds)
    pixels, labels = judge.drawings(config.seed + 2, 0, 4096, config.kinds, config.side)
    thing, colour = (logits.argmax(1) for logits in classifier(pixels))
    right = (thing == labels[:, 0]) & (colour == labels[:, 1])
    return classifier, right.float().mean().item()


def train_model(config: TrainConfig, out: Path, report: Callable[[str], None]) -> None:
    """Fits the pipeline and keeps its moving average in `out`."""
    pipeline, average = untrained(config), untrained(config)
    alphas = pipeline.scheduler.alphas_cumprod.double()
    network = listening(config, pipeline).to(config.device)
    recipe = Recipe(
        config.seed,
        config.steps,
        config.batch,
        config.learning_rate,
        config.warm_up,
        prediction_type=pipeline.scheduler.config.prediction_type,
        optimizer=config.optimizer,
        focus=config.focus,
    )
    losses, refreshed = [], time.monotonic()
    for progress in fit(network, examples(config, pipeline.tokenizer), alphas.sqrt(), (1 - alphas).sqrt(), recipe):
        losses.append(progress.loss)
        if progress.step % 50 == 0:
            report(f"step {progress.step}: loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
        if time.monotonic() - refreshed > config.refresh or progress.step == config.steps - 1:
            write(progress, listening(config, average), average, out)
            refreshed = time.monotonic()


def untrained(config: TrainConfig) -> Any:
    """The pipeline that training starts from; the same for the same seed."""
    if config.network == "unet":
        return small.pixels(config.seed, config.side)
    return small.patches(config.seed, ("a", *config.kinds.colours, *config.kinds.things), config.side)


def listening(config: TrainConfig, pipeline: Any) -> TextConditioned:
    """The networks of a pipeline as one to fit."""
    return TextConditioned(getattr(pipeline, config.network), pipeline.text_encoder, NETWORKS[config.network].ask)


def examples(config: TrainConfig, tokenizer: Any) -> Examples:
    """The training set: drawings without the held-out combinations, each with its four captions in tokens."""
    images, drawn = arrays(config.seed, 0, config.images, config.kinds, config.side, config.wrong)
    said = [d.said for d in drawn]
    captions = [caption(t, c) for thing, colour in said for t in (thing, None) for c in (colour, None)]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    return Examples(torch.from_numpy(images), tokens.view(len(images), 4, -1), dropout(config.dropped))


def write(progress: Progress, network: TextConditioned, pipeline: Any, out: Path) -> None:
    """The moving average of `progress`, moved into `pipeline`, whose networks `network` joins, and saved."""
    network.load_state_dict(progress.average.state_dict())
    pipeline.save_pretrained(out)


def measure(config: TrainConfig, classifier: judge.Classifier, denoiser: TextToImage) -> dict[str, dict[str, float]]:
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
    changed = [f for f in fields(config) if f.name != "out" and getattr(config, f.name) != f.default]
    return " ".join(["python -m jobs.train", *(f"{f.name}={getattr(config, f.name)}" for f in changed)])


def run(config: TrainConfig) -> int:
    train(config)
    return 0


if __name__ == "__main__":
    main(TrainConfig, "train", run)
