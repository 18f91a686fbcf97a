"""What every score is held against: unprojected float64 gradients, written out one sample at a time.

The formulas are those of `tests/written_out.py`, which shares the network and the keyed noise with the library and
nothing else.
"""

import torch

from tests.benchmarks.contestants import Contestant, Output, Round
from tests.benchmarks.work import QUERIES, SEED, Work
from tests.written_out import feature, ones


def contestant(task: str) -> Contestant:
    return Contestant("truth", task, "truth", "scores")


def build(work: Work) -> Round:
    """Scores [queries, n]: inner products of the first samples' gradients with everybody's."""

    def round() -> Output:
        task = work.task
        rows = [feature(work.denoiser, one, task.probe, task, SEED)[0] for batch in work.batches for one in ones(batch)]
        phi = torch.stack(rows)
        assert phi.dtype == torch.float64
        return Output(scores=phi[:QUERIES] @ phi.T)

    return round
