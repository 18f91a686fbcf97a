"""A UNet without texts (Ho et al. 2020): unconditional, or conditioned on a class where it has an embedding of classes.

diffusers' own `DDPMPipeline` and `DDIMPipeline` call it without a class. A class-conditional UNet saved in one of them
is called as `UNet2DModel` documents it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.class_conditional import ClassConditional, Classes, class_names
from concept_trak.models.pipeline import DenoisingNetwork


def predict_unet_2d(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]; the second half of twice the channels is a learned variance, which is left out."""
    return network(x_t, times, class_labels=cond.get("label"), return_dict=False)[0][:, : x_t.shape[1]]


class UNet2D(ClassConditional):
    """A UNet, whose directory does not name an empty class. So the negative is another class: any one, or one of
    `combinations` if that is set. For a model trained with an empty class, set `combinations` to that class.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DModel, predict_unet_2d, lambda network: network.mid_block)
    }

    def _read_conditioners(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> None:
        config: Any = self.network.config
        if config["class_embed_type"] is not None:
            raise UserError(
                f"{self.path}/unet has class_embed_type={config['class_embed_type']!r}, whose classes are no numbers; "
                "expected class_embed_type null with num_class_embeds, or neither"
            )
        count = config["num_class_embeds"]
        self.classes = None if count is None else Classes(count, class_names(self.path))
        if self.classes is None:
            return
        if self.negative == "empty":
            raise UserError(
                f"{self.path}/unet has no empty class, so model.negative=empty has no meaning; set "
                "model.negative=other_label (model.combinations=[<class>, ...] names the others, if not all)"
            )
        self.combinations = self.combinations or tuple(str(i) for i in range(self.classes.count))


PIPELINES: dict[str, type[Denoiser]] = {"DDPMPipeline": UNet2D, "DDIMPipeline": UNet2D}
