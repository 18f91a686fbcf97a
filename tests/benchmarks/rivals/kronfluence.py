"""kronfluence: hooks, and inner products of whole gradients; it stores nothing and goes over the data for every query.

Its identity strategy has no curvature and no projection, so its scores are exact and its time is that of the sweep.
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import QUERIES, Net, Work


class _Error(Task):
    """The sum of mean (eps - eps_theta)^2 over a batch."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        x_t, text, eps = batch
        return (eps - model(x_t, text)).square().flatten(1).mean(1).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def build(work: Work) -> Round:
    columns = [torch.cat(column) for column in zip(*work.rows(), strict=True)]
    train, queries = TensorDataset(*columns), TensorDataset(*[column[:QUERIES] for column in columns])
    model = prepare_model(Net(work), _Error())

    def round() -> Output:
        with TemporaryDirectory() as folder:
            analyzer = Analyzer("speed", model, _Error(), output_dir=folder, cpu=True, disable_tqdm=True)
            analyzer.fit_all_factors("f", dataset=train, factor_args=FactorArguments(strategy="identity"))
            analyzer.compute_pairwise_scores(
                "s", "f", query_dataset=queries, train_dataset=train, per_device_query_batch_size=QUERIES,
                per_device_train_batch_size=len(work.batches[0].ids), score_args=ScoreArguments(damping_factor=None),
            )  # fmt: skip
            found = analyzer.load_pairwise_scores("s")
            assert found is not None
        return Output(scores=found["all_modules"], stored=0)

    return round
