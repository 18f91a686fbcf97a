"""Train a model of the benchmark and its judge: python -m jobs.train [key=value ...]

Writes to `out` a diffusers pipeline directory, `classifier.safetensors`, and `training.json`, which says how they were
made and how well the model does what it is asked, combination by combination. `out` is refreshed while training runs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from concept_trak import classifier as judge
from concept_trak.data.two_factors import caption
from concept_trak.denoiser import Denoiser
from concept_trak.models import load
from concept_trak.models.small import Size
from concept_trak.schooling import TrainConfig, train_model
from jobs.configure import main


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
        **made_how(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "judge_accuracy": right,
        "held_out": [caption(*pair) for pair in config.kinds.held_out],
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
    judge.save(classifier, out / "classifier.safetensors")
    classifier = judge.load(out / "classifier.safetensors", config.kinds)
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


def _sizes(size: Size, usual: Size) -> list[str]:
    return [f"size.{name}={value}" for name, value in asdict(size).items() if value != getattr(usual, name)]


def run(config: TrainConfig) -> int:
    train(config)
    return 0


if __name__ == "__main__":
    main(TrainConfig, "train", run)
