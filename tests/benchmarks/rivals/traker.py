"""traker (TRAK, Park et al. 2023): `vmap(grad)` and a dense normal matrix.

With its default block of 100 columns the matrix is made anew for every batch; here one block holds all of it, its best
on a CPU.
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicProjector, ProjectionType

from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import SEED, Net, Work

FLOAT = 4


class _Error(AbstractModelOutput):
    """mean (eps - eps_theta)^2 of one sample."""

    def __init__(self) -> None:
        super().__init__()

    @staticmethod
    def get_output(model: Net, weights: Any, buffers: Any, x_t: Tensor, text: Tensor, eps: Tensor) -> Tensor:
        seen = torch.func.functional_call(model, (weights, buffers), (x_t[None], text[None]))
        return (eps - seen[0]).square().mean()

    def get_out_to_loss_grad(self, model: Net, weights: Any, buffers: Any, batch: Any) -> Tensor:
        return torch.ones(len(batch[0]), 1)


def build(work: Work, dim: int) -> Round:
    net, batches = Net(work), work.rows()
    projector = BasicProjector(
        grad_dim=sum(p.numel() for p in net.parameters()), proj_dim=dim, seed=SEED, device="cpu", block_size=dim,
        proj_type=ProjectionType.normal, dtype=torch.float32,
    )  # fmt: skip

    def round() -> Output:
        with TemporaryDirectory() as folder:  # it resumes where a folder has rows, so every round has its own
            tracker = TRAKer(
                model=net, task=_Error(), train_set_size=work.n, save_dir=folder, device="cpu", proj_dim=dim,
                use_half_precision=False, projector=projector, logging_level=40,
            )  # fmt: skip
            tracker.load_checkpoint(net.state_dict(), model_id=0)
            for batch in batches:
                tracker.featurize(batch=batch, num_samples=len(batch[0]))
            phi = torch.from_numpy(tracker.saver.current_store["grads"].copy())
        return Output(phi, stored=FLOAT * dim)

    return round
