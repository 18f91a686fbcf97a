"""Train the demo's model and its judge: python -m jobs.train [key=value ...]

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
from concept_trak.data import synthetic
from concept_trak.models import small
from concept_trak.models.text_to_image import TextToImage
from concept_trak.training import Examples, Progress, Recipe, TextConditioned, dropout, fit
from jobs.configure import main


@dataclass(frozen=True)
class TrainConfig:
    """What `train` needs; the defaults are the run behind `assets/demo`."""

    out: str = "assets/demo"
    seed: int = 0
    steps: int = 6000
    batch: int = 16
    learning_rate: float = 1.2e-3
    warm_up: int = 100
    """Steps before the learning rate reaches its peak."""
    images: int = 20_000
    """Training images, all drawn up front; those of the held-out combination are never among them."""
    resolution: int = 32
    dropped: float = 0.15
    """Probability that a caption loses a factor, for each factor and for both at once."""
    judge_steps: int = 600
    samples: int = 64
    """Images generated per combination and guidance to measure the model."""
    refresh: float = 120.0
    """Seconds between refreshes of `out` during training."""
    device: str = "cpu"


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
        "held_out": synthetic.caption(*synthetic.HELD_OUT),
        "samples_per_combination": config.samples,
        "shows_both_factors": measure(config, classifier, TextToImage(config.out, device=config.device)),
    }


def train_judge(config: TrainConfig, out: Path) -> tuple[judge.Classifier, float]:
    """Trains and saves the classifier; returns it with its accuracy on 4096 drawings that it was not trained on."""
    torch.manual_seed(config.seed)
    classifier = judge.Classifier()
    for _ in judge.fit(classifier, config.seed + 1, config.judge_steps, resolution=config.resolution):
        pass
    judge.save(classifier, out / "classifier.safetensors")
    classifier = judge.load(out / "classifier.safetensors")
    pixels, labels = judge.drawings(config.seed + 2, 0, 4096, config.resolution)
    shape, colour = (logits.argmax(1) for logits in classifier(pixels))
    right = (shape == labels[:, 0]) & (colour == labels[:, 1])
    return classifier, right.float().mean().item()


def train_model(config: TrainConfig, out: Path, report: Callable[[str], None]) -> None:
    """Fits the pipeline and keeps its moving average in `out`."""
    pipeline, average = small.pixels(config.seed, config.resolution), small.pixels(config.seed, config.resolution)
    alphas = pipeline.scheduler.alphas_cumprod.double()
    network = TextConditioned(pipeline.unet, pipeline.text_encoder).to(config.device)
    recipe = Recipe(
        config.seed,
        config.steps,
        config.batch,
        config.learning_rate,
        config.warm_up,
        prediction_type=pipeline.scheduler.config.prediction_type,
    )
    losses, refreshed = [], time.monotonic()
    for progress in fit(network, examples(config, pipeline.tokenizer), alphas.sqrt(), (1 - alphas).sqrt(), recipe):
        losses.append(progress.loss)
        if progress.step % 50 == 0:
            report(f"step {progress.step}: loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
        if time.monotonic() - refreshed > config.refresh or progress.step == config.steps - 1:
            write(progress, average, out)
            refreshed = time.monotonic()


def examples(config: TrainConfig, tokenizer: Any) -> Examples:
    """The training set: drawings without the held-out combination, each with its four captions in tokens."""
    images, labels = synthetic.arrays(config.seed, 0, config.images, resolution=config.resolution)
    captions = [synthetic.caption(s, c) for shape, colour in labels for s in (shape, None) for c in (colour, None)]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    return Examples(torch.from_numpy(images), tokens.view(len(images), 4, -1), dropout(config.dropped))


def write(progress: Progress, pipeline: Any, out: Path) -> None:
    """The moving average of `progress`, moved into `pipeline` and saved as a pipeline directory."""
    network = TextConditioned(pipeline.unet, pipeline.text_encoder)
    network.load_state_dict(progress.average.state_dict())
    pipeline.save_pretrained(out)


def measure(config: TrainConfig, classifier: judge.Classifier, denoiser: TextToImage) -> dict[str, dict[str, float]]:
    """By guidance and caption, the share of generated images that show what was asked for, held out or not."""
    pairs = synthetic.combinations(held_out=None)
    return {
        f"guidance {guidance:g}": judge.obedience(classifier, denoiser, pairs, config.samples, guidance, config.seed)
        for guidance in (1.0, 2.0)
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
