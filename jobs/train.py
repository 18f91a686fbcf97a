"""Train a model of the benchmark and its judge: `python -m jobs.train [key=value ...]`.

Writes to `out` a diffusers pipeline directory, `classifier.safetensors`, and `training.json` with the settings and the
accuracy of the model for every combination. `out` is written again at intervals during the training.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from concept_trak.evaluation.training.benchmark_models import TrainConfig, train_judge, train_model, training_record
from jobs.configure import main


def train(config: TrainConfig, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, measure and write everything; return the content of training.json."""
    out, start = Path(config.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    classifier, right = train_judge(config, out)
    report(f"judge: {right:.4f} right on fresh drawings, {time.monotonic() - start:.0f} s")
    train_model(config, out, lambda line: report(f"{line}, {time.monotonic() - start:.0f} s"))
    record = training_record(config, classifier, right, seconds=round(time.monotonic() - start))
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    report(json.dumps(record["shows_both_factors"], indent=2))
    return record


def run(config: TrainConfig) -> int:
    train(config)
    return 0


if __name__ == "__main__":
    main(run, "train", TrainConfig)
