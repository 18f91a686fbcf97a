"""Benchmark models: the initial pipeline, the training set, the training, and its record.

`jobs.train` trains the models of the benchmark; a causal test trains them again without some images.
"""

import itertools
import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import pair_caption
from concept_trak.evaluation import judge
from concept_trak.evaluation.training.loop import (
    TextConditioned,
    TrainingProgress,
    TrainingSet,
    caption_chances,
    replacement_rows,
    training_steps,
)
from concept_trak.evaluation.training.settings import NETWORKS, TrainConfig
from concept_trak.models import load_model, small
from concept_trak.models.small import TransformerSize


def initial_pipeline(config: TrainConfig) -> DiffusionPipeline:
    """The pipeline before training. It depends on the settings and the seed only."""
    if config.network == "unet":
        return small.pixel_pipeline(config.seed, config.side)
    words = config.kinds.words
    length = small.LENGTH + 2 * ("and" in words)
    return small.patch_pipeline(config.seed, words, config.side, config.size, config.predicts, length)


def text_conditioned(config: TrainConfig, pipeline: DiffusionPipeline) -> TextConditioned:
    """The networks of a pipeline as one trainable module."""
    return TextConditioned(getattr(pipeline, config.network), pipeline.text_encoder, NETWORKS[config.network])


def training_set(config: TrainConfig, tokenizer: Callable[..., Any], without: Collection[str] = ()) -> TrainingSet:
    """Drawings without the held-out combinations, each with its four captions as tokens.

    Args:
        config: the settings of the training.
        tokenizer: the tokenizer of the pipeline.
        without: ids of images that are left out; other images replace them (`replacement_rows`).
    """
    images, drawings = arrays(config.drawing_seed, 0, config.images, config.kinds, config.side, config.wrong)
    rows = replacement_rows(np.array([drawing.id in without for drawing in drawings]))
    named = tuple(itertools.product((True, False), repeat=2))
    captions = [drawings[row].caption_naming((thing, look)) for row in rows for thing, look in named]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    return TrainingSet(torch.from_numpy(images[rows]), tokens.view(len(rows), 4, -1), caption_chances(config.dropped))


def train_with_judge(config: TrainConfig, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train the judge and the model, measure, and write everything to `config.out`; returns the content of
    training.json."""
    out, start = Path(config.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    classifier, right = train_judge(config, out)
    report(f"judge: {right:.4f} right on fresh drawings, {time.monotonic() - start:.0f} s")
    train_model(config, out, lambda line: report(f"{line}, {time.monotonic() - start:.0f} s"))
    record = training_record(config, classifier, right, seconds=round(time.monotonic() - start))
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    report(json.dumps(record["shows_both_factors"], indent=2))
    return record


def train_model(config: TrainConfig, out: Path, report: Callable[[str], None], without: Collection[str] = ()) -> None:
    """Train the pipeline, without some of its images, and save the moving average of its weights in `out`.

    With `steps=0`, the initial weights are saved.
    """
    pipeline, average = initial_pipeline(config), initial_pipeline(config)
    if config.steps == 0:
        report("no steps: the initial weights are kept")
        return average.save_pretrained(out)
    alphas = pipeline.scheduler.alphas_cumprod.double()
    network = text_conditioned(config, pipeline).to(config.device)
    data = training_set(config, pipeline.tokenizer, without)
    losses, refreshed = [], time.monotonic()
    for progress in training_steps(network, data, alphas.sqrt(), (1 - alphas).sqrt(), config):
        losses.append(progress.loss)
        if progress.step % 50 == 0:
            report(f"step {progress.step}: loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
        if time.monotonic() - refreshed > config.refresh or progress.step == config.steps - 1:
            save_average(progress, text_conditioned(config, average), average, out)
            refreshed = time.monotonic()


def save_average(progress: TrainingProgress, network: TextConditioned, pipeline: DiffusionPipeline, out: Path) -> None:
    """Copy the moving average to `network`, which holds the networks of `pipeline`, and save the pipeline."""
    network.load_state_dict(progress.average.state_dict())
    pipeline.save_pretrained(out)


def training_record(config: TrainConfig, classifier: judge.Classifier, accuracy: float, seconds: int) -> dict[str, Any]:
    """The content of training.json: the settings and the time of the training, and the accuracy of the model."""
    return {
        **run_record(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "judge_accuracy": accuracy,
        "held_out": [pair_caption(*pair) for pair in config.kinds.held_out],
        "samples_per_combination": config.samples,
        "shows_both_factors": prompt_accuracies(config, classifier, load_model(config.out, device=config.device)),
    }


def run_record(config: TrainConfig) -> dict[str, Any]:
    """The command and settings that repeat a run, and a note on whether it trained the weights."""
    return {
        "command": train_command(config),
        "settings": {name: value for name, value in asdict(config).items() if name != "out"},
        "weights": f"after {config.steps} steps" if config.steps else "initial: never trained",
    }


def train_judge(config: TrainConfig, out: Path) -> tuple[judge.Classifier, float]:
    """Train the classifier and save it.

    Returns:
        The classifier, and its accuracy on 4096 drawings that it was not trained on.
    """
    torch.manual_seed(config.seed)
    classifier = judge.Classifier(config.kinds)
    for _ in judge.classifier_steps(classifier, config.seed + 1, config.judge_steps, resolution=config.side):
        pass
    judge.save_classifier(classifier, out / judge.JUDGE_FILE)
    classifier = judge.load_classifier(out / judge.JUDGE_FILE, config.kinds)
    pixels, labels = judge.labelled_drawings(config.seed + 2, 0, 4096, config.kinds, config.side)
    thing, colour = (logits.argmax(1) for logits in classifier(pixels))
    right = (thing == labels[:, 0]) & (colour == labels[:, 1])
    return classifier, right.float().mean().item()


def prompt_accuracies(
    config: TrainConfig, classifier: judge.Classifier, denoiser: Denoiser
) -> dict[str, dict[str, float]]:
    """By guidance and caption, the share of generated images that show both factors of the caption.

    The captions include held-out ones. Guidance needs a negative condition. The empty caption is a negative only for a
    model that was trained with it, so the others have no guidance above 1.
    """
    pairs = config.kinds.all_pairs
    return {
        f"guidance {guidance:g}": judge.prompt_accuracy(
            classifier, denoiser, pairs, config.samples, guidance, config.seed
        )
        for guidance in ((1.0, 2.0) if config.dropped else (1.0,))
    }


def train_command(config: TrainConfig) -> str:
    """The command line that repeats this run, without its `out`."""
    usual = TrainConfig(out=config.out)
    changed = {f.name: v for f in fields(config) if (v := getattr(config, f.name)) != getattr(usual, f.name)}
    settings = [f"{name}={value}" for name, value in changed.items() if name != "size"]
    return " ".join(["python -m jobs.train", *settings, *_sizes(config.size, usual.size)])


def _sizes(size: TransformerSize, usual: TransformerSize) -> list[str]:
    return [f"size.{name}={value}" for name, value in asdict(size).items() if value != getattr(usual, name)]
