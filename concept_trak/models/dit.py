"""DiT: a transformer over patches of a latent, conditioned on a class.

Peebles and Xie (2023), as `DiTPipeline` asks its network: the class after the last one stands for none, and where
an answer has twice the channels of a state, their second half is a learned variance, which is not asked for.
"""

from typing import Any, ClassVar

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.class_conditional import ClassConditional, Classes, class_names
from concept_trak.models.pipeline import DenoisingNetwork, halfway


def predict_dit(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    return network(x_t, timestep=times, class_labels=cond["label"], return_dict=False)[0][:, : x_t.shape[1]]


class DiT(ClassConditional):
    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(DiTTransformer2DModel, predict_dit, halfway)
    }

    def _read_conditioners(self, index: dict[str, str], dtype: torch.dtype, device: str) -> None:
        config: Any = self.network.config
        count = config["num_embeds_ada_norm"]
        self.classes = Classes(count, class_names(self.path), empty=count)


PIPELINES: dict[str, type[Denoiser]] = {"DiTPipeline": DiT}
