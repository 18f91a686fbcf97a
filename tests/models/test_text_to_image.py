"""The adapter against diffusers and transformers called by hand, on real pipeline directories."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from concept_trak.attribution.numerics import normal
from concept_trak.attribution.trajectory import ddim_step
from concept_trak.models import load_model, small
from tests.tolerances import EXACT64, TABLE32

TEXTS = ["a red circle", "", "a blue square"]


def by_hand(kind, folder):
    """A network as its own library loads it, in float64."""
    ways = {} if kind is CLIPTextModel else {"low_cpu_mem_usage": False}  # without accelerate, which warns
    return kind.from_pretrained(folder, torch_dtype=torch.float64, **ways).eval()


def raw_output(path, x_t, t, text):
    """What the denoising network of a directory says, asked the way diffusers' own pipeline asks it."""
    with torch.no_grad():
        if (path / "unet").is_dir():
            return by_hand(UNet2DConditionModel, path / "unet")(x_t, t, encoder_hidden_states=text).sample
        network = by_hand(PixArtTransformer2DModel, path / "transformer")
        times, size = torch.full((len(x_t),), t), {"resolution": None, "aspect_ratio": None}
        raw = network(x_t, encoder_hidden_states=text, timestep=times, added_cond_kwargs=size).sample
        # Where the network learns a variance too, the pipeline keeps the first half.
        return raw.chunk(2, dim=1)[0] if network.config.out_channels == 2 * network.config.in_channels else raw


def states(denoiser, b=3, dtype=torch.float64):
    return torch.stack([normal(denoiser.shape, 0, i, "x_t") for i in range(b)]).to(dtype)


@pytest.mark.parametrize("t", [0, 499, 999])
def test_the_prediction_is_the_networks_own(path, t):
    denoiser, scheduler = load_model(str(path), precision="float64"), DDIMScheduler.from_pretrained(path / "scheduler")
    x_t, cond = states(denoiser), denoiser.encode(TEXTS)
    with torch.no_grad():
        seen = denoiser(x_t, t, cond)
    raw = raw_output(path, x_t, t, cond["text"])
    alpha = scheduler.alphas_cumprod[t].double().sqrt()
    sigma = (1 - scheduler.alphas_cumprod[t].double()).sqrt()
    assert (denoiser.alpha[t], denoiser.sigma[t]) == (alpha, sigma), "the noise process is not the scheduler's"
    if scheduler.config["prediction_type"] == "v_prediction":
        x_0, eps = alpha * x_t - sigma * raw, sigma * x_t + alpha * raw
    else:
        x_0, eps = (x_t - sigma * raw) / alpha, raw
    torch.testing.assert_close(seen.eps, eps, rtol=EXACT64, atol=EXACT64)
    torch.testing.assert_close(seen.x_0, x_0, rtol=EXACT64, atol=EXACT64)
    torch.testing.assert_close(alpha * seen.x_0 + sigma * seen.eps, x_t, rtol=EXACT64, atol=EXACT64)


@pytest.mark.parametrize("kind", ["latents", "patches"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("t", "eta"), [(40, 0.0), (500, 0.0), (980, 0.0), (500, 0.7)])
def test_a_step_is_diffusers_own(saved, tmp_path, kind, prediction_type, t, eta):
    """Both parametrisations of one network: the reference gets its raw output, we our (x_0, eps)."""
    path = shutil.copytree(saved(kind), tmp_path / "model")
    small.scheduler(prediction_type).save_pretrained(path / "scheduler")
    denoiser = load_model(str(path), precision="float64")
    scheduler = DDIMScheduler.from_pretrained(path / "scheduler")
    scheduler.set_timesteps(50)
    x_t, cond, noise = states(denoiser), denoiser.encode(TEXTS), states(denoiser).flip(0)
    raw = raw_output(path, x_t, t, cond["text"])
    with torch.no_grad():
        ours = ddim_step(denoiser, denoiser(x_t, t, cond), t, t - 20, eta, noise if eta else None)
    theirs = scheduler.step(raw, t, x_t, eta=eta, variance_noise=noise if eta else None).prev_sample
    error = (ours - theirs).norm() / theirs.norm()
    assert error < TABLE32, f"{prediction_type} at t={t}, eta={eta}: a step differs by {error:.1e}"


def test_a_learned_variance_is_cut_off(saved, tmp_path):
    """Networks of the first PixArt answer with twice the channels; the noise is the first half."""
    path = shutil.copytree(saved("patches"), tmp_path / "model")
    network = PixArtTransformer2DModel.load_config(path / "transformer") | {"out_channels": 6, "num_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        PixArtTransformer2DModel.from_config(network).save_pretrained(path / "transformer")
    denoiser = load_model(str(path), precision="float64")
    x_t, cond = states(denoiser), denoiser.encode(TEXTS)
    with torch.no_grad():
        seen = denoiser(x_t, 300, cond)
    raw = raw_output(path, x_t, 300, cond["text"])
    assert seen.eps.shape == x_t.shape
    expected = denoiser.sigma[300] * x_t + denoiser.alpha[300] * raw
    torch.testing.assert_close(seen.eps, expected, rtol=EXACT64, atol=EXACT64)


def test_texts_are_padded_to_the_models_own_length(path):
    denoiser = load_model(str(path), precision="float64")
    words = CLIPTokenizer.from_pretrained(path / "tokenizer")
    red, circle = (words.convert_tokens_to_ids(f"{word}</w>") for word in ("red", "circle"))
    ids = torch.tensor([[small.START, red, circle] + [small.END] * 5, [small.START] + [small.END] * 7])
    with torch.no_grad():
        expected = by_hand(CLIPTextModel, path / "text_encoder")(ids).last_hidden_state
    cond = denoiser.encode(["red circle", ""])
    assert cond["text"].shape == (2, 8, 64), "padded to CLIP's 77 tokens instead of the model's own 8"
    torch.testing.assert_close(cond["text"], expected, rtol=EXACT64, atol=EXACT64)
    assert not cond["text"].requires_grad
    long = denoiser.encode(["a red circle a red circle a red circle"])
    assert long["text"].shape == (1, 8, 64), "a long text must be cut, not refused"


def test_the_attention_mask_is_used_only_where_the_text_encoder_asks(saved, tmp_path):
    path = shutil.copytree(saved("latents"), tmp_path / "model")
    plain = load_model(str(path), precision="float64").encode(["red"])["text"]
    config = json.loads((path / "text_encoder/config.json").read_text())
    (path / "text_encoder/config.json").write_text(json.dumps(config | {"use_attention_mask": True}))
    masked = load_model(str(path), precision="float64").encode(["red"])["text"]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])
    words = CLIPTokenizer.from_pretrained(path / "tokenizer")
    ids = torch.tensor([[small.START, words.convert_tokens_to_ids("red</w>")] + [small.END] * 6])
    with torch.no_grad():
        expected = by_hand(CLIPTextModel, path / "text_encoder")(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(masked, expected, rtol=EXACT64, atol=EXACT64)
    assert not torch.allclose(plain, masked)


@pytest.mark.parametrize("shift", [None, 0.25])
def test_latents_are_the_scaled_mode_of_the_vae(saved, tmp_path, shift):
    path = shutil.copytree(saved("latents"), tmp_path / "model")
    config = json.loads((path / "vae/config.json").read_text()) | {"shift_factor": shift}
    (path / "vae/config.json").write_text(json.dumps(config))
    denoiser, vae = load_model(str(path), precision="float64"), by_hand(AutoencoderKL, path / "vae")
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    with torch.no_grad():
        mean, _ = vae.quant_conv(vae.encoder(pixels)).chunk(2, 1)
        x_0 = (mean - (shift or 0)) * config["scaling_factor"]
        decoded = vae.decoder(vae.post_quant_conv(mean))
    latent = denoiser.to_latent(pixels.float())
    assert latent.shape == (2, *denoiser.shape)
    torch.testing.assert_close(denoiser.to_latent(pixels), x_0, rtol=EXACT64, atol=EXACT64)
    torch.testing.assert_close(denoiser.to_pixels(x_0), decoded, rtol=EXACT64, atol=EXACT64)
    assert config["scaling_factor"] == 0.5, "a factor of 1 would hide a missing or inverted scaling"
    assert torch.equal(latent, denoiser.to_latent(pixels.float())), "the posterior's mode, not a draw"


@pytest.mark.parametrize("kind", ["pixels", "patches"])
def test_without_a_vae_pixels_are_the_space(saved, kind):
    denoiser = load_model(str(saved(kind)))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(denoiser.to_latent(x), x)
    assert torch.equal(denoiser.to_pixels(x), x)


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("builder", [small.pixel_pipeline, small.latent_pipeline, small.patch_pipeline])
def test_the_resolution_is_that_of_the_images(tmp_path, builder, side):
    builder(0, resolution=side).save_pretrained(tmp_path)
    denoiser = load_model(str(tmp_path))
    assert denoiser.resolution == side, "latents are smaller than images by the VAE's factor"
    assert denoiser.to_latent(torch.zeros(1, 3, side, side)).shape[1:] == denoiser.shape


def test_groups_of_parameters_are_what_their_names_say(path):
    denoiser = load_model(str(path), parameters="cross_attention")
    network = denoiser.network
    names = {name for name, _ in network.named_parameters()}
    attended = [name for name, _ in network.named_modules() if name.endswith(".attn2")]
    assert set(denoiser.parameters) == {name for name in names if ".attn2." in name}
    own = {"unet": 5, "transformer": 8}[denoiser.part]
    assert len(denoiser.parameters) == own * len(attended) > 0, (
        "q, k, v, out of every cross attention, and their biases"
    )
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(denoiser.parameters)
    frozen = [denoiser.text_encoders["text_encoder"].model] + ([denoiser.vae.module] if denoiser.vae else [])
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    everything = load_model(str(path)).parameters
    assert set(everything) == names
    both = load_model(str(path), parameters="attention").parameters
    assert set(both) == {name for name in names if ".attn1." in name or ".attn2." in name}
    out = load_model(str(path), parameters="self_attention_out").parameters
    assert set(out) == {f"{name[:-1]}1.to_out.0.{own}" for name in attended for own in ("weight", "bias")}


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float64"])
def test_every_precision_loads_and_predicts_numbers(path, precision):
    denoiser = load_model(str(path), precision=precision)
    dtype = getattr(torch, precision)
    assert denoiser.dtype == dtype
    cond, x_0 = denoiser.encode(TEXTS), denoiser.to_latent(torch.zeros(3, 3, denoiser.resolution, denoiser.resolution))
    assert {cond["text"].dtype, x_0.dtype} == {dtype}
    with torch.no_grad():
        seen = denoiser(states(denoiser, dtype=dtype), 999, cond)
        image = denoiser.to_pixels(seen.x_0)
    assert seen.eps.dtype == seen.x_0.dtype == dtype, "a number of another precision entered the prediction"
    assert torch.isfinite(seen.eps).all()
    assert torch.isfinite(image).all()
