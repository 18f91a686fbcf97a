"""Images in memory, with their captions, as samples."""

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from concept_trak import UserError
from concept_trak.data.decode import rgb_image
from concept_trak.data.image import center_crop, to_tensor
from concept_trak.data.sample import Sample

Images = Sequence[Any] | Tensor
"""PIL images, or one float tensor [n, 3, h, w] in [-1, 1]; anything else is refused with a message."""


def memory_samples(
    images: Images, captions: Sequence[str] | None, ids: Sequence[str] | None, resolution: int, captioned: bool
) -> Iterator[Sample]:
    """A sample for each image, in order.

    Args:
        images: PIL images of any size, or a tensor of the model's size.
        captions: one for each image; None leaves them empty.
        ids: one for each image, all different; None numbers them: 000000, 000001, ...
        resolution: side of the model's images, in pixels.
        captioned: whether the model needs a caption.

    Raises:
        UserError: lengths differ, ids repeat or are empty, a caption is empty, or an image is not as described.
    """
    names = [f"{i:06d}" for i in range(len(images))] if ids is None else [str(i) for i in ids]
    texts = [""] * len(images) if captions is None else list(captions)
    _require_alike(len(images), texts, names, captioned)
    pixels = _checked_pixels(images, resolution) if isinstance(images, Tensor) else None
    for i, (name, text) in enumerate(zip(names, texts, strict=True)):
        own = _pixels(images[i], resolution) if pixels is None else pixels[i]
        yield Sample(id=name, caption=text, pixels=own, row=i, labels={})


def _require_alike(count: int, captions: Sequence[str], ids: Sequence[str], captioned: bool) -> None:
    if not count:
        raise UserError("images is empty; expected at least one image")
    if not count == len(captions) == len(ids):
        raise UserError(f"{count} images, {len(captions)} captions and {len(ids)} ids; expected one of each an image")
    if len(set(ids)) < count:
        raise UserError(f"ids: {next(i for i in ids if list(ids).count(i) > 1)!r} occurs twice; give each its own")
    if any(not i.strip() for i in ids):
        raise UserError("ids: one is empty; give each image an id, or leave ids out to have the images numbered")
    if captioned and (empty := [i for i, text in zip(ids, captions, strict=True) if not text]):
        raise UserError(f"the caption of {empty[0]!r} is empty; the model is conditioned on one: leave the image out")


def _checked_pixels(pixels: Tensor, resolution: int) -> Tensor:
    if pixels.dim() != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise UserError(f"images have shape {list(pixels.shape)} and {pixels.dtype}; expected floats [n, 3, h, w]")
    if pixels.shape[2:] != (resolution, resolution):
        raise UserError(
            f"images are {pixels.shape[2]} x {pixels.shape[3]} and the model's are {resolution} x {resolution}; resize "
            "them, or give PIL images, which are resized and cropped"
        )
    if not -1.001 <= float(pixels.min()) <= float(pixels.max()) <= 1.001:
        raise UserError(
            f"images range over {float(pixels.min()):.3g} ... {float(pixels.max()):.3g}; expected x / 127.5 - 1"
        )
    return pixels.cpu().float()


def _pixels(image: Any, resolution: int) -> Tensor:
    if not isinstance(image, Image.Image):
        raise UserError(f"an image is {type(image).__name__}; expected PIL images or one float tensor [n, 3, h, w]")
    return to_tensor(center_crop(rgb_image(image), resolution))
