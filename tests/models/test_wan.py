"""Clips: latents with a frame axis, from a VAE that is causal in time."""

import json
import shutil

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.config import DataConfig
from concept_trak.data.format import Precomputed
from concept_trak.data.sample import Sample
from concept_trak.models import load_model
from concept_trak.models.encode import encode_samples, read_concept_files
from tests.models.families import FAMILIES, seeded

CLIPS = torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
MEANS, DEVIATIONS = torch.tensor([0.5, 0.0, -0.25, 0.0]), torch.tensor([2.0, 1.0, 0.5, 1.0])


@pytest.fixture(scope="module")
def pipe():
    return seeded(FAMILIES["wan"].build)


@pytest.fixture(scope="module")
def path(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_clips(path):
    return load_model(str(path), resolution=32, frames=5)


def test_a_clip_is_the_mode_of_the_posterior_with_a_scale_of_each_channel(pipe, of_clips):
    """Against the VAE itself; a picture is shown of the first frame that it decodes from the whole clip."""
    with torch.no_grad():
        mode = pipe.vae.eval().encode(CLIPS).latent_dist.mode()
        decoded = pipe.vae.decode(mode).sample
    x_0 = of_clips.to_latent(CLIPS)
    assert x_0.shape == (2, 4, 2, 8, 8) == (2, *of_clips.shape)
    for i, (mean, deviation) in enumerate(zip(MEANS, DEVIATIONS, strict=True)):
        torch.testing.assert_close(x_0[:, i], (mode[:, i] - mean) / deviation)
    torch.testing.assert_close(of_clips.to_pixels(x_0), decoded[:, :, 0], rtol=1e-4, atol=1e-4)


def test_an_image_is_a_clip_of_one_frame(path, of_clips):
    of_images = load_model(str(path), resolution=32)
    assert of_images.shape == (4, 1, 8, 8)
    images = CLIPS[:, :, 0]
    torch.testing.assert_close(of_images.to_latent(images), of_clips.to_latent(CLIPS)[:, :, :1])
    torch.testing.assert_close(of_images.to_latent(images), of_images.to_latent(CLIPS[:, :, :1]))


def test_one_time_for_a_clip_is_that_time_for_each_of_its_tokens(of_clips):
    """Wan 2.2 (5B) is given a time for each token (`expand_timesteps`)."""
    x_t, text = torch.randn(2, *of_clips.shape), of_clips.encode(["a red circle", ""])["text"]
    with torch.no_grad():
        once = of_clips.network(x_t, torch.full((2,), 400.0), text, return_dict=False)[0]
        each = of_clips.network(x_t, torch.full((2, of_clips.image_tokens), 400.0), text, return_dict=False)[0]
    assert of_clips.image_tokens == 2 * 4 * 4
    torch.testing.assert_close(once, each)


@pytest.mark.parametrize("frames", [2, 4, 80])
def test_frames_that_the_vae_does_not_encode_are_refused_with_the_nearest_that_it_does(path, frames):
    near = {2: "1 or 5", 4: "1 or 5", 80: "77 or 81"}[frames]
    with pytest.raises(UserError, match=rf"data\.frames={frames}, .* have 1 \+ 4 k frames; set it to {near}$"):
        load_model(str(path), resolution=32, frames=frames)


def test_the_default_size_is_that_of_the_pipeline(path):
    assert load_model(str(path), frames=81).shape == (4, 21, 480 // 4, 832 // 4)


def test_two_networks_are_refused(path, tmp_path):
    model = shutil.copytree(path, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (model / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(model / "transformer", model / "transformer_2")
    with pytest.raises(UserError, match="has two denoising networks, one for high and one for low noise"):
        load_model(str(model))


def test_a_model_of_images_has_no_clips(tmp_path):
    seeded(FAMILIES["ddpm"].build).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"data\.frames=5, and .* draws single images; set data\.frames=0"):
        load_model(str(tmp_path), frames=5)


def encoded(denoiser, frames: int) -> Sample:
    latent = torch.randn(denoiser.shape[0], frames, *denoiser.shape[2:])
    condition = {name: value[0] for name, value in denoiser.encode(["a red circle"]).items()}
    return Sample("s", "a red circle", None, 0, {}, precomputed=Precomputed(latent, condition))


def test_latents_of_another_number_of_frames_are_refused(of_clips):
    x_0, cond = encode_samples(of_clips, [encoded(of_clips, 2)])
    assert x_0.shape == (1, *of_clips.shape)
    assert cond["text"].shape == (1, 512, 32)
    expected = r"they have latents \[4, 3\], .* the model reads latents \[4, 2\], .* set data\.frames to their number"
    with pytest.raises(UserError, match=expected):
        encode_samples(of_clips, [encoded(of_clips, 3)])


def test_pictures_of_a_concept_are_no_clips(of_clips):
    concept = Concept("red", image="red.png", scope="local")
    with pytest.raises(UserError, match=r"'red' names pictures, and the model draws clips of 2 frames of latents"):
        read_concept_files(of_clips, concept, DataConfig(frames=5))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 9, 32, 32)], ids=["image", "clip of 9"])
def test_samples_of_another_number_of_frames_are_refused(of_clips, shape):
    sample = Sample("s", "a red circle", torch.zeros(shape), 0, {})
    with pytest.raises(UserError, match=r"have [13] frames of latents, and the model draws 2; .* \(data\.frames\)$"):
        encode_samples(of_clips, [sample])


def test_clips_for_a_model_of_images_are_refused(tmp_path):
    seeded(FAMILIES["ddpm"].build).save_pretrained(tmp_path)
    sample = Sample("s", "", torch.zeros(3, 5, 16, 16), 0, {})
    with pytest.raises(UserError, match=r"are clips, and the model draws single images; set data\.frames=0"):
        encode_samples(load_model(str(tmp_path)), [sample])


def test_examples_are_refused_where_the_model_draws_no_squares(path):
    concept = Concept("red", examples=("red.png", "round.png"))
    with pytest.raises(UserError, match=r"'red' has examples, .* draws 120 x 208 latents; set model\.resolution"):
        read_concept_files(load_model(str(path)), concept)


def test_positions_have_the_precision_that_the_pipeline_gives_them(path):
    network = WanTransformer3DModel.from_pretrained(path / "transformer", torch_dtype=torch.bfloat16)
    rope = load_model(str(path), precision="bfloat16", resolution=32).network.rope
    for name, table in network.rope.named_buffers():
        assert table.dtype == torch.float32
        assert torch.equal(rope.get_buffer(name), table), "the tables were rounded to bfloat16"


def test_the_levels_of_the_published_scheduler_are_those_that_it_steps_over(path, tmp_path):
    model = shutil.copytree(path, tmp_path / "model")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.save_pretrained(model / "scheduler")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", type(scheduler).__name__]}))
    sigma = load_model(str(model)).sigma
    scheduler.set_timesteps(20)
    for level in scheduler.sigmas[:-1].double():
        assert (sigma - level).abs().min() < 2e-3
    assert sigma[-1] == 1


NAMES = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_out.0": "o"}


def test_a_lora_with_the_names_of_the_original_code_is_its_product_added(path, of_clips, tmp_path):
    """Against a model whose weights hold it; the scale of such a file without `alpha` is 1."""
    whole, matrices = load_model(str(path), resolution=32, frames=5), {}
    with torch.no_grad():
        for layer in ("blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0"):
            a, b = torch.randn(2, 24), torch.randn(24, 2)
            whole.network.get_submodule(layer).weight += b @ a
            for ours, original in NAMES.items():
                layer = layer.replace(ours, original)
            matrices |= {f"diffusion_model.{layer}.lora_A.weight": a, f"diffusion_model.{layer}.lora_B.weight": b}
    save_file(matrices, tmp_path / "lora.safetensors")
    ours = load_model(str(path), resolution=32, frames=5, lora=str(tmp_path / "lora.safetensors"), parameters="lora")
    assert len(ours.parameters) == 4
    x_t, cond = torch.randn(1, *ours.shape), ours.encode(["a red circle"])
    with torch.no_grad():
        torch.testing.assert_close(ours(x_t, 400, cond).eps, whole(x_t, 400, cond).eps, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ours(x_t, 400, cond).eps, of_clips(x_t, 400, cond).eps, rtol=1e-2)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_missing_weight_is_refused(path, tmp_path, part):
    """diffusers loads these parts in another way than other networks, because they have layers in float32."""
    model = shutil.copytree(path, tmp_path / "model")
    file = model / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "norm" in name)
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{part} lacks 1 weights \({name}"):
        load_model(str(model), resolution=32)
