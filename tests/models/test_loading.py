"""What makes a model another model, and every directory that is none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.models import load_model


@pytest.fixture
def model(saved, tmp_path):
    """A latent pipeline to spoil."""
    return shutil.copytree(saved("latents"), tmp_path / "model")


def weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_copy_elsewhere_is_the_same_model(path, tmp_path):
    copy = shutil.copytree(path, tmp_path / "model")
    assert load_model(str(copy)).identity() == load_model(str(path)).identity()


@pytest.mark.parametrize(
    ("kind", "part"),
    [("latents", "unet"), ("latents", "text_encoder"), ("latents", "vae"), ("patches", "transformer")],
)
def test_one_byte_of_a_weight_makes_another_model(saved, tmp_path, kind, part):
    model = shutil.copytree(saved(kind), tmp_path / "model")
    before = load_model(str(model)).identity()
    content = bytearray(weights(model / part).read_bytes())
    content[-3] ^= 1
    weights(model / part).write_bytes(content)
    after = load_model(str(model)).identity()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {weights(model / part).relative_to(model).as_posix()}


@pytest.mark.parametrize("values", [{"beta_end": 0.021}, {"prediction_type": "v_prediction"}])
def test_another_noise_process_makes_another_model(model, values):
    before = load_model(str(model)).identity()
    edit(model / "scheduler/scheduler_config.json", **values)
    after = load_model(str(model)).identity()
    assert {name for name in before if before[name] != after[name]} == {"schedule"}


def test_the_tokenizer_is_part_of_the_model(model):
    before = load_model(str(model)).identity()
    edit(model / "tokenizer/tokenizer_config.json", model_max_length=7)
    assert load_model(str(model)).identity() != before


def gone(model):
    shutil.rmtree(model)


def no_index(model):
    (model / "model_index.json").unlink()


def broken_index(model):
    (model / "model_index.json").write_text('{"unet": [')


def listed_index(model):
    (model / "model_index.json").write_text('["unet"]')


def neither_unet_nor_transformer(model):
    edit(model / "model_index.json", unet=[None, None])


def a_transformer_without_files(model):
    edit(model / "model_index.json", unet=[None, None], transformer=["diffusers", "PixArtTransformer2DModel"])


def no_tokenizer_folder(model):
    shutil.rmtree(model / "tokenizer")


def empty_tokenizer_folder(model):
    no_tokenizer_folder(model)
    (model / "tokenizer").mkdir()


def unknown_class(model):
    edit(model / "model_index.json", scheduler=["diffusers", "DDIMSchedulerOfTomorrow"])


def pickled(model):
    """What older pipelines hold; reading it could run code."""
    torch.save(load_file(weights(model / "unet")), model / "unet" / "diffusion_pytorch_model.bin")
    weights(model / "unet").unlink()


def cut_off(model):
    file = weights(model / "unet")
    file.write_bytes(file.read_bytes()[:-1000])


def cut_off_text_encoder(model):
    file = weights(model / "text_encoder")
    file.write_bytes(file.read_bytes()[:-1000])


def one_weight_less(model):
    file = weights(model / "unet")
    tensors = load_file(file)
    tensors.pop("conv_in.bias")
    save_file(tensors, file, metadata={"format": "pt"})


def another_shape(model):
    edit(model / "unet/config.json", in_channels=5)


def no_configuration(model):
    (model / "vae/config.json").unlink()


def unknown_prediction(model):
    edit(model / "scheduler/scheduler_config.json", prediction_type="sample")


def fewer_steps(model):
    edit(model / "scheduler/scheduler_config.json", num_train_timesteps=50)


def flow(model):
    shutil.rmtree(model / "scheduler")
    FlowMatchEulerDiscreteScheduler().save_pretrained(model / "scheduler")
    edit(model / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])


REFUSALS = {
    gone: r"model' does not exist; expected a diffusers pipeline directory with ",
    no_index: r"model' has no model_index\.json; expected a diffusers pipeline directory",
    broken_index: r"model_index\.json is not a JSON mapping .*; save the pipeline again",
    listed_index: r"model_index\.json is not a JSON mapping .*; save the pipeline again",
    neither_unet_nor_transformer: r"model' lacks unet; it needs unet",
    a_transformer_without_files: r"model' lacks unet; it needs",
    no_tokenizer_folder: r"model' lacks tokenizer; it needs",
    empty_tokenizer_folder: r"model' lacks tokenizer; it needs",
    unknown_class: r"DDIMSchedulerOfTomorrow as the class of scheduler; expected one of .*DDIMScheduler, .* never",
    pickled: r"unet holds no \.safetensors weights named .*; convert them .* can run code and are never read",
    cut_off: r"unet/diffusion_pytorch_model\.safetensors is no whole safetensors file .*; save the pipeline again",
    cut_off_text_encoder: r"text_encoder/model\.safetensors is no whole safetensors file .*; save the pipeline again",
    one_weight_less: r"unet lacks 1 weights \(conv_in\.bias, \.\.\.\), which would be random; save the pipeline again",
    another_shape: r"(?s)unet cannot be loaded as a UNet2DConditionModel .*size mismatch.*; save the pipeline again",
    no_configuration: r"vae/config\.json is missing, or is no regular file; save the pipeline again",
    unknown_prediction: r"DDIMScheduler with prediction_type='sample'; .*prediction_type epsilon or v_prediction",
    fewer_steps: r"50 steps; expected at least 51, the points of the DDIM grid",
    flow: r"FlowMatchEulerDiscreteScheduler .*expected alphas_cumprod .* Save the pipeline with a DDIM or",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_a_directory_that_is_no_such_pipeline_is_refused_with_the_remedy(model, spoil):
    spoil(model)
    with pytest.raises(UserError, match=REFUSALS[spoil]):
        load_model(str(model))


def test_another_class_of_pipeline_is_refused_with_those_that_open(model):
    edit(model / "model_index.json", _class_name="KandinskyPipeline")
    expected = r"is a KandinskyPipeline, which no family here opens; expected one of .*FluxPipeline, .*XLPipeline"
    with pytest.raises(UserError, match=expected):
        load_model(str(model))


def test_a_pattern_without_parameters_is_refused_with_what_there_is(saved):
    has = r"It has all \([\d,]+ in \d+ tensors\), .*cross_attention \(.*; or give a pattern .* such as: conv_in"
    with pytest.raises(
        ValueError, match=r"matches none of the \d+ tensors .* A LoRA is loaded by model\.lora=.* " + has
    ):
        load_model(str(saved("latents")), parameters="lora")
