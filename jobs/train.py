"""Train a model of the benchmark and its judge: `python -m jobs.train [key=value ...]`.

Writes to `out` a diffusers pipeline directory, `classifier.safetensors`, and `training.json` with the settings and the
accuracy of the model for every combination. `out` is written again at intervals during the training.
"""

from concept_trak.evaluation.training.benchmark_models import TrainConfig, train_with_judge
from jobs.configure import main


def train(config: TrainConfig) -> int:
    """Train, measure and write everything."""
    train_with_judge(config)
    return 0


if __name__ == "__main__":
    main(train, "train", TrainConfig)
