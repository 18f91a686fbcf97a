"""What strangers keep as models: parts of other models, numbers that are none, weights without their scales."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.models import load_model

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(saved, tmp_path) -> Path:
    return shutil.copytree(saved("latents"), tmp_path / "model")


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(model: Path) -> str:
    """The one line that refuses the model."""
    with pytest.raises(UserError) as raised:
        load_model(str(model))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "entry", [["diffusers", "UNet3DConditionModel"], ["os", "system"], ["diffusers", "NoSuchModel"]]
)
def test_a_network_of_another_class_is_not_read_as_the_familys(model, entry):
    edit(model / "model_index.json", unet=entry)
    assert f"names {entry[1]} as the class of unet; expected one of UNet2DConditionModel" in refusal(model)


@pytest.mark.parametrize("value", [0, 0.0, float("nan"), float("inf"), "0.18", True])
def test_a_scale_that_is_no_number_is_refused(model, value):
    edit(model / "vae/config.json", scaling_factor=value)
    assert f"vae/config.json has scaling_factor {value!r}; expected a finite number" in refusal(model)


def test_a_scale_of_null_is_one(model):
    edit(model / "vae/config.json", scaling_factor=None)
    assert load_model(str(model)).vae.scale == 1.0


@pytest.mark.parametrize("size", ["16", 0, -8, 8.5, [8], [8, "8"], True])
def test_a_size_that_is_no_whole_number_is_refused(model, size):
    edit(model / "unet/config.json", sample_size=size)
    assert f"has sample_size {size!r}; set it to the side" in refusal(model)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8])
def test_weights_that_are_whole_numbers_are_not_cast(model, kind):
    tensors = {name: (100 * value).to(kind) for name, value in load_file(model / WEIGHTS).items()}
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    assert "so the weights are quantized, and config.json has no quantization_config" in refusal(model)


def test_a_tokenizer_of_another_vocabulary_is_refused(model):
    vocabulary = model / "tokenizer/vocab.json"
    file = vocabulary if vocabulary.exists() else model / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    (content if file == vocabulary else content["model"]["vocab"])["red</w>"] = 100_001
    file.write_text(json.dumps(content))
    assert "has a token number 100001, and the text encoder has" in refusal(model)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_say_so(model, keep):
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:keep])
    assert f"{WEIGHTS} is no whole safetensors file" in refusal(model)


def test_the_librarys_failure_is_one_line(model):
    edit(model / "scheduler/scheduler_config.json", num_train_timesteps="1000")
    assert "scheduler cannot be loaded as a DDIMScheduler (linspace()" in refusal(model)


def test_links_in_a_circle_below_a_model_do_no_harm(model):
    (model / "unet/again").symlink_to(model)
    (model / "unet/itself").symlink_to(model / "unet/itself")
    assert load_model(str(model)).unused_files() == []
