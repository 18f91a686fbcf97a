"""Real image files into the numbers a model is trained on.

EXIF rotation, RGB on white, short side resized, centre crop, [-1, 1].
"""

import io
import warnings

import fsspec
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor


def decode(data: bytes) -> Image.Image:
    """The picture as a person sees it: upright, RGB, transparency on white, the first frame, 16 bits scaled to 8.

    Raises:
        OSError, ValueError, Image.DecompressionBombError: it cannot be read; the message says what is wrong with the
        file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return Image.fromarray(
            (np.asarray(upright).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def read(path: str) -> bytes:
    """The bytes of one image file, local or a URL, once they are known to be an image.

    Raises:
        ValueError: it is missing, or no picture.
    """
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()  # type: ignore[union-attr]
        decode(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"the image {path!r} cannot be read ({error}); expected a picture file") from None
    return data


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """Short side to `resolution` (antialiased), then the centre square."""
    width, height = image.size
    if min(width, height) != resolution:
        scale = resolution / min(width, height)
        size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """x / 127.5 - 1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_png(pixels: Float[Tensor, "3 h w"]) -> bytes:
    """Pixels in [-1, 1], clipped, as a PNG file."""
    levels = ((pixels.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return png(Image.fromarray(levels.permute(1, 2, 0).numpy()))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
