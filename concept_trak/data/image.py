"""Convert pictures to the pixels that a model is trained on, and back to image files.

Training images: short side resized, centre crop, [-1, 1]. The files of a concept are example pictures at the model's
size, an image, or a classifier.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from concept_trak import UserError
from concept_trak.data.decode import ENDINGS, MOST_PIXELS, decode_image
from concept_trak.store.file_system import open_file_system

MOST_EXAMPLES = 256
"""The most examples of a concept, because they are sent to the workers with the query."""


def read_image(path: str, transparency: str = "white", most_pixels: int = MOST_PIXELS) -> bytes:
    """The bytes of one image file, local or a URL, after a check that they are an image.

    Args:
        path: the file.
        transparency, most_pixels: as of `decode_image`.

    Raises:
        UserError: it is missing, no picture, or too large.
    """
    try:
        data = _read(path)
        decode_image(data, transparency, most_pixels)
    except (OSError, ValueError) as error:
        raise UserError(f"the image {path!r} cannot be read ({error}); expected a picture file") from None
    return data


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """Short side to `resolution` (antialiased), then the centre square."""
    return resize_crop(image, (resolution, resolution))


def resize_crop(image: Image.Image, size: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Resized (antialiased) until it just covers `size`; then that size, cut out at `place`.

    Only what is kept is computed: a strip of 1 x 50,000 pixels would otherwise take gigabytes.

    Args:
        image: RGB.
        size: [height, width] of the result, in pixels.
        place: position of the cut in the rest, in [0, 1] down and across; 0.5 is the centre.
    """
    height, width = size
    kept_width = min(image.width, image.height * width / height)
    kept_height = min(image.height, image.width * height / width)
    left, top = (image.width - kept_width) * place[1], (image.height - kept_height) * place[0]
    if height == width and place == (0.5, 0.5):
        left, top = int(left), int(top)  # whole pixels, so that a crop at scale 1 blurs nothing
    right, bottom = min(left + kept_width, image.width), min(top + kept_height, image.height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def nearest_bucket(image: Image.Image, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The [height, width] whose ratio is nearest to the image's: least |h_image w - w_image h|, the last of equals.

    As `find_nearest_bucket` in the training scripts of diffusers.
    """
    return min(reversed(sizes), key=lambda size: abs(image.height * size[1] - image.width * size[0]))


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """x / 127.5 - 1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_png(pixels: Float[Tensor, "3 h w"]) -> bytes:
    """Pixels in [-1, 1], clipped, as a PNG file."""
    return png(to_image(pixels))


def to_thumbnail(pixels: Float[Tensor, "3 h w"], side: int) -> tuple[bytes, str]:
    """A small file of the picture and its ending: PNG as it is where no side is longer than `side`, else a JPEG."""
    image = to_image(pixels)
    if max(image.size) <= side:
        return png(image), "png"
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue(), "jpg"


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    levels = ((pixels.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def read_fitted_image(path: str, resolution: int, transparency: str = "white", most_pixels: int = MOST_PIXELS) -> bytes:
    """One image file as a PNG of the model's size, with the pixels that a training image of these bytes has.

    Raises:
        UserError: as `read_image`.
    """
    data = read_image(path, transparency, most_pixels)
    return png(center_crop(decode_image(data, transparency, most_pixels), resolution))


def read_examples(
    paths: Sequence[str], resolution: int, transparency: str = "white", most_pixels: int = MOST_PIXELS
) -> tuple[bytes, ...]:
    """Every picture of `paths`, cut and sized as training images are.

    Args:
        paths: files or folders of them, local or URLs.
        resolution: side of the model's images, in pixels.
        transparency, most_pixels: as of `decode_image`.

    Returns:
        PNG files of `resolution` x `resolution`.

    Raises:
        UserError: one is missing, no picture, or smaller than the model's images; there are none, or too many.
    """
    files = [file for path in paths for file in _files(path)]
    if not 0 < len(files) <= MOST_EXAMPLES:
        raise UserError(
            f"examples={list(paths)} are {len(files)} pictures; expected 1 to {MOST_EXAMPLES}, as {', '.join(ENDINGS)}"
        )
    return tuple(_example(file, resolution, transparency, most_pixels) for file in files)


def _files(path: str) -> Iterator[str]:
    """The file, or the pictures that lie in the folder, by name."""
    fs, root = open_file_system(path)
    if not fs.isdir(root):
        yield path
        return
    for name in sorted(fs.ls(root, detail=False)):
        hidden = name.rpartition("/")[2].startswith(".")
        if not hidden and name.lower().endswith(tuple(f".{ending}" for ending in ENDINGS)):
            yield fs.unstrip_protocol(name)


def _example(path: str, resolution: int, transparency: str, most_pixels: int) -> bytes:
    image = decode_image(read_image(path, transparency, most_pixels), transparency, most_pixels)
    if min(image.size) < resolution:
        raise UserError(
            f"the example {path} has {image.width} x {image.height} pixels and the model draws {resolution} x "
            f"{resolution}: enlarged, it would show the model a blur; give a larger picture"
        )
    return png(center_crop(image, resolution))


def read_file(path: str) -> bytes:
    """The bytes of a file, local or a URL.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path!r} cannot be read ({error}); give a .safetensors file") from None


def _read(path: str) -> bytes:
    fs, name = open_file_system(path)
    if fs.exists(name) and not fs.isfile(name):
        raise UserError("it is a folder, a pipe or a device")
    with fs.open(name, "rb") as file:
        return file.read()
