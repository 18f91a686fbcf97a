"""From samples to what the network reads: x_0 and a condition, made by the model's encoders or brought along."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from concept_trak.data.sample import Sample
from concept_trak.denoiser import Condition, Denoiser


def encoded(denoiser: Denoiser, samples: Sequence[Sample]) -> tuple[Tensor, Condition]:
    """x_0 [b, c, h, w] and the condition of samples of one shape.

    Raises:
        ValueError: what the data bring along does not fit the model.
    """
    if samples[0].precomputed is None:
        pixels = torch.stack([_pixels(s) for s in samples])
        return denoiser.to_latent(_there(pixels, denoiser)), denoiser.encode([s.caption for s in samples])
    latents = [s.precomputed.latent for s in samples if s.precomputed]
    conditions = [s.precomputed.condition for s in samples if s.precomputed]
    cond = {name: _there(torch.stack([c[name] for c in conditions]), denoiser) for name in conditions[0]}
    _require_fit(denoiser, latents[0], cond)
    return _there(torch.stack(latents), denoiser), cond


def _require_fit(denoiser: Denoiser, latent: Tensor, cond: Condition) -> None:
    expected = denoiser.encode([""])
    said = {"latents": latent.shape[:1], **{name: value.shape[1:] for name, value in cond.items()}}
    needed = {"latents": torch.Size(denoiser.shape[:1]), **{name: v.shape[1:] for name, v in expected.items()}}
    if said != needed:
        there, wanted = (
            ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) for shapes in (said, needed)
        )
        raise ValueError(
            f"the precomputed latents and embeddings do not fit the model: they have {there} (channels, and the shape "
            f"of each part of a condition), the model reads {wanted}; encode them with this model"
        )


def _pixels(sample: Sample) -> Tensor:
    assert sample.pixels is not None, "a sample has pixels, or a latent"
    return sample.pixels


def _there(tensor: Tensor, denoiser: Denoiser) -> Tensor:
    """On the model's device, and floating-point numbers in its precision."""
    return tensor.to(denoiser.device, denoiser.dtype if tensor.is_floating_point() else None)


def alike(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples of one shape together, in order: one batch each."""
    found: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.shape, []).append(sample)
    return list(found.values())
