"""dattri's TRAK: `vmap(grad)`, and a projector made anew for every batch."""

import torch
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import Net, Work

FLOAT = 4
HUGE = 1e12
"""Its damping. It keeps (X^T X + damping I)^-1 X^T and not X, and where damping is all there is, that is X^T / damping.
"""


def build(work: Work, kind: str, dim: int) -> Round:
    net, columns = Net(work), [torch.cat(column) for column in zip(*work.rows(), strict=True)]
    loader = DataLoader(TensorDataset(*columns), batch_size=len(work.batches[0].ids))

    def loss(parameters: dict[str, Tensor], sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x_t, text, eps = sample
        return (eps - torch.func.functional_call(net, parameters, (x_t[None], text[None]))[0]).square().mean()

    task = AttributionTask(loss_func=loss, model=net, checkpoints=net.state_dict())
    settings = {"proj_dim": dim, "proj_type": kind, "proj_max_batch_size": 32, "proj_seed": 0, "device": "cpu"}

    def round() -> Output:
        attributor = TRAKAttributor(
            task, correct_probability_func=lambda parameters, sample: torch.zeros(1), projector_kwargs=settings,
            device="cpu", regularization=HUGE,
        )  # fmt: skip
        with torch.no_grad():
            attributor.cache(loader)
        return Output(attributor.inv_XTX_XT_list[0].T * HUGE, stored=FLOAT * dim)

    return round
