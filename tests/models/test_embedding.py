"""Rankings by the embedding of pictures: tiny random instances of the real classes, loaded as a user's folders are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from concept_trak import UserError
from concept_trak.models.embedding import Embedder, require_embeddings

CPU = torch.device("cpu")
WIDTHS = {"clip": 8, "dino": 16, "resnet": 16}
PART = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save(kind: str, folder: Path) -> Path:
    """A tiny random model of a kind and its image preparation: 32 pixels, of which the middle 28 remain for dino."""
    torch.manual_seed(0)
    if kind == "clip":
        words = {**PART, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
        vision = {**PART, "image_size": 32, "patch_size": 8}
        config = CLIPConfig(text_config=words, vision_config=vision, projection_dim=8)
        model, crop = CLIPModel(config), 32
    elif kind == "dino":
        model, crop = Dinov2Model(Dinov2Config(**PART, image_size=28, patch_size=14)), 28
    else:
        model, crop = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])), 32
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil if kind == "clip" else BitImageProcessorPil
    processor(size={"shortest_edge": 32}, crop_size={"height": crop, "width": crop}).save_pretrained(folder)
    return folder


def pictures(count: int, side: int = 48) -> torch.Tensor:
    """Noise of whole bytes, in [-1, 1]."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, side, side))).float() / 127.5 - 1


@pytest.mark.parametrize("kind", WIDTHS)
def test_an_embedding_is_what_the_library_computes_for_the_picture_file(kind, tmp_path):
    """The oracle goes by a PNG file and the library's own preparation, one picture at a time."""
    folder, batch = save(kind, tmp_path / kind), pictures(3)
    ours = Embedder(folder, CPU)(batch)
    assert ours.shape == (3, WIDTHS[kind])
    model = {"clip": CLIPModel, "dino": Dinov2Model, "resnet": ResNetModel}[kind].from_pretrained(folder).eval()
    processor = (CLIPImageProcessorPil if kind == "clip" else BitImageProcessorPil).from_pretrained(folder)
    for x, own in zip(batch, ours, strict=True):
        Image.fromarray(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
        pixels = processor(images=Image.open(tmp_path / "x.png"), return_tensors="pt")
        embed = model.get_image_features if kind == "clip" else model
        with torch.no_grad():
            theirs = embed(**pixels).pooler_output.flatten()
        torch.testing.assert_close(own, theirs / theirs.norm(), rtol=0, atol=1e-5)


def test_names_and_folders_are_checked_before_anything_runs(tmp_path):
    folder = save("resnet", tmp_path / "resnet")
    require_embeddings({"resnet": str(folder)}, ("pixels",))
    with pytest.raises(UserError, match=r"embeddings\.pixels: another ranking has this name"):
        require_embeddings({"pixels": str(folder)}, ("pixels",))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"embeddings\.resnet: .* has no preprocessor_config\.json"):
        require_embeddings({"resnet": str(folder)}, ())


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = save("resnet", tmp_path / "resnet")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="resnet"):
        Embedder(folder, CPU)
