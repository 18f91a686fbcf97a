"""A tiny random instance of every family, of the real classes, for the conformance suite: a new family is a line."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.data.image import to_image
from tests.models.tiny import (
    controlnet,
    controlnet_sd3,
    controlnet_sdxl,
    ddpm,
    dit,
    ip_adapter,
    ip_adapter_sdxl,
    pixart,
    pixart_t5,
    sana,
    sd3,
    sdxl,
    stable_diffusion,
)
from tests.models.tiny_flows import (
    chroma,
    controlnet_flux,
    flux,
    flux2_dev,
    flux2_klein,
    lumina2,
    qwen_image,
    wan,
    z_image,
)


@dataclass(frozen=True)
class Tiny:
    """A family's pipeline, and how diffusers itself runs it.

    build: the pipeline, whose weights are drawn from torch's own generator or a seed of its own.
    part: its denoising network.
    call: (pipeline, text, x_T, ours): the pipeline's own call from x_T, unguided.
    reads: (ours, x_t, t, raw output): (x_0, eps), by the formula of its prediction type.
    index: (ours, the time a network is told, in its own scale): t.
    their_step: (pipeline, raw output, t, x_t): x at t - 20, by the pipeline's scheduler.
    texts: what to ask for: three conditions, then the empty one.
    group: named parameters that it has, beside `attention` and `all`.
    ways: what else `load` is told.
    replayed: how many parameters cost a pass per sample, through their module or the whole network.
    casts: whether the network computes in float32 whatever its precision, by `Tensor.float`.
    trained: a pattern that the names of the parameters begin with that were trained; the others were frozen.
    clip: the frames of its pixels, if they have frames.
    unpack: (ours, tokens or a state of the network): the state that they are, [b, c, h, w], without a learned variance.
    """

    build: Callable[[], Any]
    part: str
    call: Callable[[Any, str, Tensor, Denoiser], Any]
    reads: Callable[[Denoiser, Tensor, int, Tensor], tuple[Tensor, Tensor]]
    index: Callable[[Denoiser, float], int]
    their_step: Callable[[Any, Tensor, int, Tensor], Tensor]
    texts: tuple[str, ...] = ("a red circle", "a blue square", "a green triangle", "")
    group: str = "cross_attention"
    ways: dict[str, Any] = field(default_factory=dict)
    replayed: int = 0
    casts: bool = False
    trained: str = ""
    clip: tuple[int, ...] = ()
    unpack: Callable[[Denoiser, Tensor], Tensor] = lambda ours, output: output[:, : ours.shape[0]]


def draw(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    return pipe(text, num_inference_steps=20, guidance_scale=1.0, latents=x_t, output_type="latent")


def images(ours: Denoiser, b: int) -> Tensor:
    """Conditioning images [b, 3, h, w] in [-1, 1] that differ."""
    side = ours.resolution
    return torch.linspace(-1, 1, b * 3 * side**2, dtype=torch.float64).reshape(b, 3, side, side).roll(side // 2, -1)


def draw_controlled(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    image = (images(ours, 1) + 1) / 2
    return pipe(text, image=image, num_inference_steps=20, guidance_scale=1.0, latents=x_t, output_type="latent")


def beside_latents(call: Callable[..., Any], ours: Denoiser) -> Callable[..., Any]:
    """The pipeline's call with an image whose latents are not drawn but the mode of their posterior."""

    def with_image(*args: Any, **ways: Any) -> Any:
        with mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()):
            return call(*args, control_image=images(ours, 1), **ways)

    return with_image


def draw_beside_latents(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    return draw(beside_latents(pipe, ours), text, x_t, ours)


def draw_packed_beside_latents(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """With the strength of guidance that diffusers' script trains at; the pipeline's default is another."""
    return draw_packed(partial(beside_latents(pipe, ours), guidance_scale=3.5), text, x_t, ours)


def draw_with_reference(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """Of a picture of 8 bits, as its file would be opened."""
    ways = {"ip_adapter_image": to_image(images(ours, 1)[0]), "guidance_scale": 1.0, "output_type": "latent"}
    return pipe(text, num_inference_steps=20, latents=x_t, **ways)


def draw_patches(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """Encoded by us, since the tiny pipeline has CLIP's kind of encoder where PixArt's own call masks T5's padding."""
    encoded = ours.encode([text])["text"]
    given = {"prompt_embeds": encoded, "prompt_attention_mask": torch.ones(encoded.shape[:2])}
    ways = {"guidance_scale": 1.0, "use_resolution_binning": False, "output_type": "latent"}
    return pipe(num_inference_steps=20, latents=x_t, **given, **ways)


def draw_masked(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """By its own encoder and mask; `clean_caption` is a matter of another package."""
    ways = {"clean_caption": False, "use_resolution_binning": False, "output_type": "latent"}
    return pipe(text, num_inference_steps=20, guidance_scale=1.0, latents=x_t, **ways)


def draw_latents(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """Of no size that the pipeline knows; height and width are checked, and x_T decides."""
    ways = {"height": 32, "width": 32, "use_resolution_binning": False, "output_type": "latent"}
    return pipe(text, num_inference_steps=20, guidance_scale=1.0, latents=x_t, **ways)


def draw_class(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    return pipe([int(text)], num_inference_steps=20, guidance_scale=1.0)


def draw_anything(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    return pipe(num_inference_steps=20)


def call_with_class(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """`DDPMPipeline` calls its network without a class, so this is the call that `UNet2DModel` documents."""
    return pipe.unet(x_t, 950, class_labels=torch.tensor([int(text)]))


def levels(ours: Denoiser, t: int) -> tuple[float, float]:
    return ours.alpha[t].item(), ours.sigma[t].item()


def from_eps(ours: Denoiser, x_t: Tensor, t: int, raw: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = levels(ours, t)
    return (x_t - sigma * raw) / alpha, raw


def from_v(ours: Denoiser, x_t: Tensor, t: int, raw: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = levels(ours, t)
    return alpha * x_t - sigma * raw, sigma * x_t + alpha * raw


def itself(ours: Denoiser, time: float) -> int:
    return int(time)


def ddim(pipe: Any, raw: Tensor, t: int, x_t: Tensor) -> Tensor:
    pipe.scheduler.set_timesteps(50)
    return pipe.scheduler.step(raw, t, x_t).prev_sample


def ddim_of_ddpm(pipe: Any, raw: Tensor, t: int, x_t: Tensor) -> Tensor:
    """DDIM over a DDPM's noise levels; its own sampler adds noise, and clips."""
    return ddim(SimpleNamespace(scheduler=DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False,
                                                                    set_alpha_to_one=False)), raw, t, x_t)  # fmt: skip


def from_flow(ours: Denoiser, x_t: Tensor, t: int, raw: Tensor, shift: float = 3.0) -> tuple[Tensor, Tensor]:
    """x_t = (1 - s) x_0 + s eps and v = eps - x_0, solved for both, with s of an unshifted flow of 1000 steps."""
    s = shift * (t + 1) / 1000 / (1 + (shift - 1) * (t + 1) / 1000)
    return x_t - s * raw, x_t + (1 - s) * raw


def of_flow(ours: Denoiser, time: float) -> int:
    return int((1000 * ours.sigma - time).abs().argmin())


def of_sigma(ours: Denoiser, time: float) -> int:
    """Of networks that are told sigma itself."""
    return int((ours.sigma - time).abs().argmin())


def unpacked(ours: Denoiser, tokens: Tensor) -> Tensor:
    """Each token is a square of 2 x 2 latents, with the channel outermost: as diffusers packs those of Flux."""
    c, h, w = ours.shape
    squares = tokens.reshape(len(tokens), h // 2, w // 2, c, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), c, h, w)


def packed(x_t: Tensor) -> Tensor:
    """The inverse of `unpacked`."""
    b, c, h, w = x_t.shape
    return x_t.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def draw_packed(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """With the length that the tiny T5 has, if the pipeline is told one, and the guidance of the pipeline's default."""
    ways: dict[str, Any] = {"height": 16, "width": 16, "latents": packed(x_t), "output_type": "latent"}
    return pipe(text, num_inference_steps=20, max_sequence_length=16, **ways)


def draw_qwen(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    return pipe(text, height=16, width=16, num_inference_steps=20, latents=packed(x_t), output_type="latent")


def in_rows(ours: Denoiser, tokens: Tensor) -> Tensor:
    """A token is the channels at a place, in rows."""
    return tokens.mT.reshape(len(tokens), *ours.shape)


def draw_flux2(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """With the length that the tiny tokenizer has, and the guidance of the pipeline's default."""
    ways: dict[str, Any] = {"height": 16, "width": 16, "latents": x_t, "output_type": "latent"}
    return pipe(prompt=text, num_inference_steps=20, max_sequence_length=256, **ways)


def draw_klein(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """With the length that the tiny tokenizer has, and without guidance."""
    ways: dict[str, Any] = {"height": 16, "width": 16, "latents": x_t, "output_type": "latent", "guidance_scale": 1.0}
    return pipe(prompt=text, num_inference_steps=20, max_sequence_length=64, **ways)


def euler(pipe: Any, raw: Tensor, t: int, x_t: Tensor, shift: float = 3.0) -> Tensor:
    """diffusers' step between two of its own 1000 noise levels."""
    levels = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[levels[t].item(), levels[t - 20].item()])
    return scheduler.step(raw, scheduler.timesteps[0], x_t).prev_sample


def from_reversed_flow(ours: Denoiser, x_t: Tensor, t: int, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Of networks that predict x_0 - eps."""
    return from_flow(ours, x_t, t, -raw)


def of_image(ours: Denoiser, time: float) -> int:
    """Of networks that are told 1 - sigma."""
    return int((1 - ours.sigma - time).abs().argmin())


def reversed_euler(pipe: Any, raw: Tensor, t: int, x_t: Tensor) -> Tensor:
    return euler(pipe, -raw, t, x_t)


def frames(ours: Denoiser, images: Any) -> Tensor:
    """Of a network that takes and returns a list of images, [c, 1, h, w] each."""
    return torch.stack(list(images)).squeeze(2)


def draw_lumina(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    return pipe(
        text, num_inference_steps=20, guidance_scale=1.0, latents=x_t, output_type="latent", height=16, width=16
    )


def draw_z_image(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    """Its guidance counts from 0, and it takes float32 alone."""
    ways = {"height": 16, "width": 16, "output_type": "latent"}
    return pipe(text, num_inference_steps=20, guidance_scale=0.0, latents=x_t.float(), **ways)


def draw_clip(pipe: Any, text: str, x_t: Tensor, ours: Denoiser) -> Any:
    ways = {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe(text, num_inference_steps=20, latents=x_t, **ways)


ADAPTER = r"encoder_hid_proj\.|.*\.attn2\.processor\.to_[kv]_ip\."
LABELS = ("0", "1", "2", "")
DYNAMIC = math.exp(0.5 - (256 - 16) * (1.15 - 0.5) / (4096 - 256))  # e^mu of the 16 tokens of a tiny image


KLEIN = math.exp(1.8997314 - (1.8997314 - 0.45937498) * 40 / 190)  # the same of Flux.2, with its lines at 16 tokens


def tiny_flux(build: Callable[[], Any], call: Callable[[Any, str, Tensor, Denoiser], Any] = draw_packed) -> Tiny:
    """A family that packs its latents as Flux does, and shifts its levels by the size of the image."""
    return Tiny(
        build=build,
        part="transformer",
        call=call,
        reads=partial(from_flow, shift=DYNAMIC),
        index=of_sigma,
        their_step=partial(euler, shift=DYNAMIC),
        group="attention",
        ways={"resolution": 16},
        unpack=unpacked,
    )


FAMILIES: dict[str, Tiny] = {
    "stable_diffusion_eps": Tiny(lambda: stable_diffusion("epsilon"), "unet", draw, from_eps, itself, ddim,
                                 replayed=1),
    "stable_diffusion_v": Tiny(lambda: stable_diffusion("v_prediction"), "unet", draw, from_v, itself, ddim,
                                 replayed=1),
    "controlnet": Tiny(controlnet, "unet", draw_controlled, from_eps, itself, ddim, trained=r"controlnet\."),
    "controlnet_sdxl": Tiny(controlnet_sdxl, "unet", draw_controlled, from_eps, itself, ddim, trained=r"controlnet\."),
    "controlnet_sd3": Tiny(controlnet_sd3, "transformer", draw_beside_latents, from_flow, of_flow, euler,
                           group="attention", trained=r"controlnet\."),
    "controlnet_sd3_5": Tiny(
        lambda: controlnet_sd3(joint_attention_dim=None, use_pos_embed=False, force_zeros_for_pooled_projection=False),
        "transformer", draw_beside_latents, from_flow, of_flow, euler, group="attention",
        trained=r"controlnet\.(?!pos_embed\.)"),
    "controlnet_flux": replace(tiny_flux(lambda: controlnet_flux(guidance=True), draw_packed_beside_latents),
                               trained=r"controlnet\."),
    "ip_adapter": Tiny(ip_adapter, "unet", draw_with_reference, from_eps, itself, ddim, trained=ADAPTER),
    "ip_adapter_sdxl": Tiny(ip_adapter_sdxl, "unet", draw_with_reference, from_eps, itself, ddim, trained=ADAPTER),
    "sdxl": Tiny(lambda: sdxl(zeros=True), "unet", draw, from_eps, itself, ddim),
    "sdxl_encoded_empty": Tiny(lambda: sdxl(zeros=False), "unet", draw, from_eps, itself, ddim),
    "sd3": Tiny(lambda: sd3(t5=False), "transformer", draw, from_flow, of_flow, euler, group="attention"),
    "sd3_5_large": Tiny(lambda: sd3(t5=False, qk_norm="rms_norm"), "transformer", draw, from_flow, of_flow, euler,
                        group="attention"),
    "sd3_t5": Tiny(lambda: sd3(t5=True, qk_norm="rms_norm", dual_attention_layers=(0, 1)), "transformer", draw,
                   from_flow, of_flow, euler, group="attention"),
    "flux": tiny_flux(lambda: flux(guidance=True)),
    "flux_schnell": tiny_flux(lambda: flux(guidance=False)),
    "flux2": replace(
        tiny_flux(flux2_klein, draw_klein), unpack=in_rows,
        reads=partial(from_flow, shift=KLEIN), their_step=partial(euler, shift=KLEIN),
    ),
    "flux2_dev": replace(
        tiny_flux(flux2_dev, draw_flux2), unpack=in_rows,
        reads=partial(from_flow, shift=KLEIN), their_step=partial(euler, shift=KLEIN),
    ),
    "chroma": tiny_flux(chroma),
    "qwen_image": tiny_flux(qwen_image, draw_qwen),
    "lumina2": Tiny(lumina2, "transformer", draw_lumina, from_reversed_flow, of_image, reversed_euler,
                    group="attention"),
    "z_image": Tiny(z_image, "transformer", draw_z_image, from_reversed_flow, of_image, reversed_euler,
                    ("a red circle", "a green triangle", "a blue square", ""), "attention", {"resolution": 16},
                    unpack=frames, casts=True),
    "sana": Tiny(sana, "transformer", draw_latents, from_flow, of_flow, euler, casts=True),
    "wan": Tiny(wan, "transformer", draw_clip, from_flow, of_flow, euler, ways={"resolution": 32, "frames": 5},
                casts=True, clip=(5,)),
    "pixart": Tiny(pixart, "transformer", draw_patches, from_eps, itself, ddim),
    "pixart_t5": Tiny(lambda: pixart_t5(sizes=False), "transformer", draw_masked, from_eps, itself, ddim),
    "pixart_t5_sizes": Tiny(lambda: pixart_t5(sizes=True), "transformer", draw_masked, from_eps, itself, ddim),
    "dit": Tiny(dit, "transformer", draw_class, from_eps, itself, ddim, LABELS, "self_attention_out"),
    "unet_2d": Tiny(lambda: ddpm(4), "unet", call_with_class, from_eps, itself, ddim_of_ddpm, ("0", "1", "2", "3"),
                    "self_attention_out", {"negative": "other_label"}),
    "ddpm": Tiny(lambda: ddpm(None), "unet", draw_anything, from_eps, itself, ddim_of_ddpm, ("",) * 4,
                 "self_attention_out"),
}  # fmt: skip


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()
