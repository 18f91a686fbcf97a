"""DiT: a transformer over patches of a latent, conditioned on a class (Peebles and Xie 2023).

As in `DiTPipeline`, the class after the last one is the empty class. Where the output has twice the channels of a
state, the second half is a learned variance, which is left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.class_conditional import ClassConditional, Classes, class_names
from concept_trak.models.pipeline import DenoisingNetwork, middle_block


def predict_dit(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], without the learned variance."""
    return network(x_t, timestep=times, class_labels=cond["label"], return_dict=False)[0][:, : x_t.shape[1]]


class DiT(ClassConditional):
    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(DiTTransformer2DModel, predict_dit, middle_block)
    }

    def _read_conditioners(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> None:
        config: Any = self.network.config
        count = config["num_embeds_ada_norm"]
        self.classes = Classes(count, class_names(self.path), empty=count)


PIPELINES: dict[str, type[Denoiser]] = {"DiTPipeline": DiT}
