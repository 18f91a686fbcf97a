"""Similarity of pictures by an embedding that knows nothing of the audited model: CLIP, DINOv2, a ResNet.

A ranking by appearance is the rival that a user has at hand. Its weights are a local folder as transformers writes it.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel

from concept_trak import UserError
from concept_trak.models.loading import from_folder, load_part

AT_ONCE = 100
"""Pictures in one forward pass."""
FILES = ("config.json", "preprocessor_config.json")


def require_embeddings(embeddings: Mapping[str, str], other_names: Collection[str]) -> None:
    """Check the names and the folders of embeddings before anything is computed.

    Args:
        embeddings: by name of the ranking, the folder of weights.
        other_names: the names of all other rankings.

    Raises:
        UserError: another ranking has the name, or the folder lacks a file; the message names the first such embedding.
    """
    for name, folder in embeddings.items():
        if name in other_names:
            raise UserError(f"embeddings.{name}: another ranking has this name; choose another name")
        if absent := [file for file in FILES if not (Path(folder) / file).is_file()]:
            raise UserError(
                f"embeddings.{name}: {folder!r} has no {absent[0]}; expected the folder of a transformers model that "
                "embeds pictures, such as CLIPModel or Dinov2Model, with its image preparation"
            )


class Embedder:
    """A vision model of transformers and the preparation of pictures that its folder describes."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """
        Args:
            folder: weights, configuration and image preparation. Nothing is fetched, and no code of the folder is run.
            device: where the pictures are embedded.

        Raises:
            UserError: transformers cannot load the folder, or weights are missing.
        """
        self._prepare = from_folder(AutoImageProcessor, folder, backend="pil", trust_remote_code=False)
        self._model = load_part(AutoModel, folder.parent, folder.name, torch.float32, str(device))

    @torch.no_grad()
    def __call__(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n width"]:
        """The embeddings of pictures in [-1, 1], of unit length."""
        parts = [self._embed(part) for part in pictures.split(AT_ONCE)]
        return normalize(torch.cat(parts))

    def _embed(self, pictures: Tensor) -> Tensor:
        """CLIP's joint space where the model has one, else its pooled output."""
        images = (pictures.clamp(-1, 1) * 127.5 + 127.5).round().byte().cpu().numpy()
        pixels = self._prepare(images=list(images), input_data_format="channels_first", return_tensors="pt")
        embed = getattr(self._model, "get_image_features", self._model)
        return embed(pixel_values=pixels["pixel_values"].to(self._model.device)).pooler_output.flatten(1)
