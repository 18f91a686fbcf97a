"""Encoding by the model: training samples, and the files of a concept, to latents and conditions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Condition, Denoiser, blank_condition
from concept_trak.attribution.query import mean_latent, query_batch
from concept_trak.attribution.state import Batch
from concept_trak.attribution.uncertainty import example_groups
from concept_trak.config import DataConfig
from concept_trak.data.decode import decode_image
from concept_trak.data.image import center_crop, read_examples, read_file, read_fitted_image, to_tensor
from concept_trak.data.sample import Sample
from concept_trak.models.classifier import open_classifier
from concept_trak.store.part import Reject


def batches_of_one_shape(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples in batches of one shape each, in order."""
    batches: dict[torch.Size, list[Sample]] = {}
    for sample in samples:
        batches.setdefault(sample.shape, []).append(sample)
    return list(batches.values())


def reject_unknown_class(denoiser: Denoiser, sample: Sample | Reject) -> Sample | Reject:
    """The sample, or a reject (`no_class`) if its caption is not a condition of the model."""
    if isinstance(sample, Reject):
        return sample
    try:
        denoiser.spelled(sample.caption)
    except UserError as error:
        return reject(sample, "no_class", str(error)[:300])
    return sample


def reject(sample: Sample, reason: str, message: str) -> Reject:
    """The reject in place of a sample that has no feature."""
    return Reject(sample_id=sample.id, source=sample.source, row=sample.row, reason=reason, message=message)


def usable_batches(
    denoiser: Denoiser, rows: Iterable[Sample | Reject], size: int, rejects: list[Reject]
) -> Iterator[list[Sample]]:
    """The usable samples in batches of one shape and at most `size`, in order; the others are added to `rejects`."""
    waiting = list[Sample]()
    for row in rows:
        sample = reject_unknown_class(denoiser, row)
        if isinstance(sample, Reject):
            rejects.append(sample)
            continue
        waiting.append(sample)
        if len(waiting) == size:
            yield from batches_of_one_shape(waiting)
            waiting = []
    yield from batches_of_one_shape(waiting)


def encode_samples(denoiser: Denoiser, samples: Sequence[Sample]) -> tuple[Float[Tensor, "b c *space"], Condition]:
    """x_0 and the conditions of samples of one shape.

    Raises:
        UserError: precomputed latents or embeddings do not fit the model, or one of samples and model has
            conditioning images alone.
    """
    if samples[0].precomputed is None:
        pixels = torch.stack([sample.content for sample in samples])
        if pixels.dim() == 5 and len(denoiser.shape) == 3:
            raise UserError("the samples are clips, and the model draws single images; set data.frames=0")
        cond = denoiser.encode([s.caption for s in samples]) | _image_condition(denoiser, samples)
        x_0 = denoiser.to_latent(_on_model(pixels, denoiser))
        _require_frames(denoiser, x_0)
        return x_0, cond
    latents = [s.precomputed.latent for s in samples if s.precomputed]
    conditions = [s.precomputed.condition for s in samples if s.precomputed]
    cond = {name: _on_model(torch.stack([c[name] for c in conditions]), denoiser) for name in conditions[0]}
    _require_fit(denoiser, latents[0], cond)
    return _on_model(torch.stack(latents), denoiser), cond


def _require_frames(denoiser: Denoiser, x_0: Float[Tensor, "b c *space"]) -> None:
    frames, expected = x_0.shape[2:-2].numel(), math.prod(denoiser.shape[1:-2])
    if frames != expected:
        raise UserError(
            f"the samples have {frames} frames of latents, and the model draws {expected}; open the model and the "
            "data set with the same number of frames (data.frames)"
        )


def _image_condition(denoiser: Denoiser, samples: Sequence[Sample]) -> Condition:
    """The parts of a condition that the samples' conditioning images make; {} for a model that takes none."""
    require_conditioning_images(denoiser, samples)
    images = [sample.conditioning for sample in samples if sample.conditioning is not None]
    if denoiser.own_image and not images:
        images = [sample.content for sample in samples]
    return denoiser.encode_image(_on_model(torch.stack(images), denoiser)) if images else {}


def require_conditioning_images(denoiser: Denoiser, samples: Sequence[Sample]) -> None:
    """Refuse samples without a conditioning image for a model that takes one, and samples with one for other models.

    Raises:
        UserError: naming the setting.
    """
    has_image = samples[0].conditioning is not None
    if denoiser.takes_image and not (has_image or denoiser.own_image):
        raise UserError(
            "the model takes a conditioning image beside the caption, and the samples have none; give a data set, and "
            "set data.conditioning_image_column to the column of these images, such as conditioning_image"
        )
    if has_image and not denoiser.takes_image:
        raise UserError(
            "data.conditioning_image_column is set, and the model takes no image beside the caption; leave it empty, "
            "or set model.path to the pipeline with the ControlNet or the IP-Adapter"
        )


def _require_fit(denoiser: Denoiser, latent: Tensor, cond: Condition) -> None:
    size = (latent.shape[-2] * (factor := denoiser.resolution // denoiser.shape[-1]), latent.shape[-1] * factor)
    own = {name: value.shape[1:] for name, value in blank_condition(denoiser, [""], size).items()}
    actual = {"latents": latent.shape[:-2], **{name: value.shape[1:] for name, value in cond.items()}}
    expected = {"latents": torch.Size(denoiser.shape[:-2]), **own}
    if actual != expected:
        has, needs = (
            ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
            for shapes in (actual, expected)
        )
        raise UserError(
            f"the precomputed latents and embeddings do not fit the model: they have {has} (channels, of a clip "
            f"also frames, and the shape of each part of a condition), the model reads {needs}; encode them with this "
            "model, and of clips set data.frames to their number of frames"
        )


def _on_model(tensor: Tensor, denoiser: Denoiser) -> Tensor:
    """On the model's device, and in its precision if the numbers are floating-point."""
    return tensor.to(denoiser.device, denoiser.dtype if tensor.is_floating_point() else None)


@dataclass(frozen=True)
class ConceptFiles:
    """The contents of the files that a concept names; empty if it names none.

    Image, examples and conditioning image are PNG files of the model's size.
    """

    image: bytes = b""
    examples: tuple[bytes, ...] = ()
    classifier: bytes = b""
    conditioning: bytes = b""


def read_concept_files(denoiser: Denoiser, concept: Concept, data: DataConfig = DataConfig()) -> ConceptFiles:
    """The contents of the files that a concept names, with transparency and the limit of pixels as of training images.

    Raises:
        UserError: one cannot be read, or does not fit the model; the message names the concept.
    """
    how = (denoiser.resolution, data.transparency, data.most_pixels)
    if (concept.image or concept.examples) and math.prod(denoiser.shape[1:-2]) > 1:
        raise UserError(
            f"concept {concept.name!r} names pictures, and the model draws clips of {denoiser.shape[1]} frames of "
            "latents; ask with prompts, or about single images (data.frames=0)"
        )
    height, width = denoiser.shape[-2:]
    if concept.examples and height != width:
        raise UserError(
            f"concept {concept.name!r} has examples, which are cropped to squares, and the model draws "
            f"{height} x {width} latents; set model.resolution to the side of a square, or ask with prompts"
        )
    try:
        files = ConceptFiles(
            image=read_fitted_image(concept.image, *how) if concept.image else b"",
            examples=read_examples(concept.examples, *how) if concept.examples else (),
            classifier=read_file(concept.classifier) if concept.classifier else b"",
            conditioning=read_fitted_image(concept.conditioning_image, *how) if concept.conditioning_image else b"",
        )
        if files.classifier:
            open_classifier(files.classifier, concept.classifier, concept.shows, denoiser)
    except UserError as error:
        raise UserError(f"concept {concept.name!r}: {error}") from None
    return files


def open_query(denoiser: Denoiser, concept: Concept, files: ConceptFiles, size: int) -> Batch:
    """The samples of a query, with its files encoded. Disjoint groups of its samples have disjoint examples.

    Args:
        size: examples encoded at a time.
    """
    reference = files.conditioning or (files.image if denoiser.own_image else b"")
    pixels, conditioning = (
        decode_pixels([image], denoiser.resolution) if image else None for image in (files.image, reference)
    )
    groups = example_groups(len(files.examples), concept.count)
    means = [_mean_example(denoiser, files.examples[group::groups], size) for group in range(groups)]
    targets = torch.stack(means) if means else None
    classifier = None
    if files.classifier:
        classifier = open_classifier(files.classifier, concept.classifier, concept.shows, denoiser)
    return query_batch(denoiser, concept, pixels, targets, classifier, conditioning)


def _mean_example(denoiser: Denoiser, examples: Sequence[bytes], size: int) -> Float[Tensor, " c *space"]:
    """The mean x_0 of some examples, `size` of which are encoded at a time."""
    runs = (examples[i : i + size] for i in range(0, len(examples), size))
    return mean_latent(denoiser, (decode_pixels(run, denoiser.resolution) for run in runs))


def decode_pixels(images: Sequence[bytes], resolution: int) -> Float[Tensor, "n 3 h w"]:
    """Image files as pixels in [-1, 1], square and of the model's resolution."""
    return torch.stack([to_tensor(center_crop(decode_image(image), resolution)) for image in images])
