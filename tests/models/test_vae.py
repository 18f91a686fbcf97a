"""VAEs as people have them: overflowing in float16, without a posterior, or marked to run in float32."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLQwenImage, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.models import load_model
from concept_trak.models.vae import Autoencoder
from tests.models.families import FAMILIES, seeded

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def louder(model: Path, factor: float) -> Path:
    """A VAE whose first convolution gives `factor` times as large activations, as SDXL's own does."""
    file = model / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["encoder.conv_in.weight"] *= factor
    save_file(state, file, {"format": "pt"})
    return model


@pytest.fixture
def sdxl(tmp_path) -> Path:
    seeded(FAMILIES["sdxl"].build).save_pretrained(tmp_path / "sdxl")
    return tmp_path / "sdxl"


def test_a_vae_that_is_marked_so_runs_in_float32(sdxl):
    low, high = load_model(str(sdxl), precision="float16"), load_model(str(sdxl))
    assert low.vae.module.dtype == torch.float32
    assert low.to_latent(IMAGES).dtype == torch.float16
    torch.testing.assert_close(low.to_latent(IMAGES).float(), high.to_latent(IMAGES), rtol=2e-3, atol=2e-3)
    assert low.to_pixels(low.to_latent(IMAGES)).isfinite().all()
    assert low.identity()["vae_precision"] == "float32"
    assert "vae_precision" not in high.identity()


def test_no_bright_image_is_rejected_for_a_vae_that_overflows(sdxl):
    """Half of such images had no finite latent, and the other half was scored: a selection by brightness."""
    denoiser = load_model(str(louder(sdxl, 1e5)), precision="float16")
    assert denoiser.to_latent(IMAGES).isfinite().all()


def test_an_overflow_of_some_images_is_mended_for_these_alone_and_told_once(saved, tmp_path, caplog):
    model = louder(shutil.copytree(saved("latents"), tmp_path / "m"), 1.0)
    file = model / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": False}))
    denoiser, wide = load_model(str(model), precision="float16"), load_model(str(model))
    plain = denoiser.to_latent(IMAGES)
    overflowing = IMAGES.clone()
    overflowing[1] = 65000.0
    latents = denoiser.to_latent(overflowing)
    assert latents.isfinite().all()
    assert torch.equal(latents[[0, 2]], plain[[0, 2]]), "an image's latent must not depend on its neighbours"
    torch.testing.assert_close(latents[1].float(), wide.to_latent(overflowing)[1], rtol=2e-2, atol=2e-2)
    denoiser.to_latent(overflowing)
    told = [r for r in caplog.records if "overflows" in r.getMessage()]
    assert len(told) == 1


KINDS = {
    "tiny": lambda: AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                    num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)),
    "dc": lambda: AutoencoderDC(latent_channels=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
                                encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16),
                                encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
                                encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
                                scaling_factor=0.4),
    "vq": lambda: VQModel(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, num_vq_embeddings=8,
                          norm_num_groups=4, sample_size=16),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_vae_without_a_posterior_is_its_one_latent_scaled(saved, tmp_path, kind):
    """As diffusers' own image-to-image pipeline takes it: its encoder's output, times the scaling factor."""
    model = shutil.copytree(saved("latents"), tmp_path / "m")
    shutil.rmtree(model / "vae")
    vae = seeded(KINDS[kind]).eval()
    vae.save_pretrained(model / "vae")
    index = model / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vae": ["diffusers", type(vae).__name__]}))
    denoiser = load_model(str(model))
    with torch.no_grad():
        encoded = vae.encode(IMAGES, return_dict=False)[0]
        scale = vae.config.get("scaling_factor") or 1.0
        decoded = vae.decode(encoded, return_dict=False)[0]
    torch.testing.assert_close(denoiser.to_latent(IMAGES), encoded * scale)
    torch.testing.assert_close(denoiser.to_pixels(encoded * scale), decoded, rtol=1e-4, atol=1e-4)
    assert denoiser.to_latent(IMAGES).shape[1:] == denoiser.shape
    assert denoiser.resolution == 16, "the factor between pixels and latents is the VAE's own"


def video_vae(**settings) -> AutoencoderKLQwenImage:
    """For images its factor is 4. Two channels of the four have another deviation than 1."""
    own = {"latents_mean": [0.5, 0.0, -0.25, 0.0], "latents_std": [2.0, 1.0, 0.5, 1.0]}
    return AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1,
                                  temperal_downsample=[False, True], **own | settings).eval()  # fmt: skip


def test_a_vae_for_video_encodes_an_image_as_a_frame_with_a_scale_of_each_channel():
    vae = seeded(video_vae)
    with torch.no_grad():
        mode = vae.encode(IMAGES[:, :, None]).latent_dist.mode()
        decoded = vae.decode(mode).sample[:, :, 0]
    own = Autoencoder(vae, torch.float32)
    latents = own.encode(IMAGES)
    assert (latents.shape, own.factor, own.channels) == ((3, 4, 4, 4), 4, 4)
    for i, (mean, deviation) in enumerate(((0.5, 2.0), (0.0, 1.0), (-0.25, 0.5), (0.0, 1.0))):
        torch.testing.assert_close(latents[:, i], (mode[:, i, 0] - mean) / deviation)
    torch.testing.assert_close(own.decode(latents), decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, float("nan"), 1.0], "one"])
def test_deviations_that_are_not_one_positive_number_for_each_channel_are_refused(wrong):
    with pytest.raises(UserError, match=r"vae/config\.json has latents_std .*; expected 4 finite numbers"):
        Autoencoder(video_vae(latents_std=wrong), torch.float32)


def test_the_factor_of_a_vae_with_blocks_is_that_of_its_encoder(saved):
    vae = AutoencoderKL.from_pretrained(saved("latents") / "vae", low_cpu_mem_usage=False)
    measured = 16 // vae.encode(IMAGES).latent_dist.mode().shape[-1]
    assert Autoencoder(vae, torch.float32).factor == measured == 2
