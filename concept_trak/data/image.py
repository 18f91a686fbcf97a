"""Real image files into the numbers a model is trained on.

EXIF rotation, RGB on white, short side resized, centre crop, [-1, 1].

What a concept that no prompt names is given by: pictures at the model's own size, or a classifier's file.
"""

import io
import warnings
from collections.abc import Iterator, Sequence

import fsspec
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def decode_image(data: bytes) -> Image.Image:
    """The picture as a person sees it: upright, RGB, transparency on white, the first frame, 16 bits scaled to 8.

    Raises:
        ValueError: it cannot be read; the message says what is wrong with the file, the same every time.
    """
    try:
        return _rgb(_upright(data))
    except UnidentifiedImageError:
        raise ValueError(f"no image format that is known: {len(data)} bytes, beginning {data[:8]!r}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged bytes raise what they stumble over: RuntimeError, SyntaxError, ...
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _upright(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # damaged metadata leaves the pixels usable
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return ImageOps.exif_transpose(image)


def _rgb(upright: Image.Image) -> Image.Image:
    if upright.mode.startswith("I"):
        return Image.fromarray(
            (np.asarray(upright).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def read_image(path: str) -> bytes:
    """The bytes of one image file, local or a URL, once they are known to be an image.

    Raises:
        ValueError: it is missing, or no picture.
    """
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()  # type: ignore[union-attr]
        decode_image(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"the image {path!r} cannot be read ({error}); expected a picture file") from None
    return data


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """Short side to `resolution` (antialiased), then the centre square."""
    return resize_crop(image, (resolution, resolution))


def resize_crop(image: Image.Image, size: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Resized (antialiased) until it just covers `size`, [height, width]; then that size, cut out at `place`.

    `place`, in [0, 1] down and across, says where the cut lies in what is left over: 0.5 is the centre. Only what is
    kept is computed: a strip of 1 x 50,000 pixels would otherwise take gigabytes.
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
    return png(_image(pixels))


def to_thumbnail(pixels: Float[Tensor, "3 h w"], side: int) -> tuple[bytes, str]:
    """A small file of the picture and its suffix: PNG as it is where no side is longer than `side`, else a JPEG."""
    image = _image(pixels)
    if max(image.size) <= side:
        return png(image), "png"
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue(), "jpg"


def suffix(data: bytes) -> str:
    """What files of this picture's format are called, from its bytes alone: png, jpeg, webp, …"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            return (image.format or "image").lower()


def _image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    levels = ((pixels.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


MOST = 256
"""Examples a concept may have: they travel to the workers with the question."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_examples(paths: Sequence[str], resolution: int) -> tuple[bytes, ...]:
    """Every picture of `paths`, files or folders of them, cut and sized as training images are: PNG of `resolution`.

    Raises:
        ValueError: one is missing, no picture, or smaller than the model's images; there are none, or too many.
    """
    found = [file for path in paths for file in _files(path)]
    if not 0 < len(found) <= MOST:
        raise ValueError(
            f"examples={list(paths)} are {len(found)} pictures; expected 1 to {MOST}, as {', '.join(SUFFIXES)}"
        )
    return tuple(_example(file, resolution) for file in found)


def _files(path: str) -> Iterator[str]:
    """The file, or the pictures that lie in the folder, by name."""
    fs, place = fsspec.core.url_to_fs(path)
    if not fs.isdir(place):
        yield path
        return
    for name in sorted(fs.ls(place, detail=False)):
        if name.lower().endswith(SUFFIXES):
            yield fs.unstrip_protocol(name)


def _example(path: str, resolution: int) -> bytes:
    image = decode_image(read_image(path))
    if min(image.size) < resolution:
        raise ValueError(
            f"the example {path} has {image.width} x {image.height} pixels and the model draws {resolution} x "
            f"{resolution}: enlarged, it would ask for what is blurred; give a larger picture"
        )
    return png(center_crop(image, resolution))


def read_file(path: str) -> bytes:
    """The bytes of a file, local or a URL.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()  # type: ignore[union-attr]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be read ({error}); give a .safetensors file") from None
