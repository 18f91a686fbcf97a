"""Real image files into the numbers a model is trained on.

EXIF rotation, RGB on white, short side resized, centre crop, [-1, 1].
"""

import io
import warnings

import fsspec
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def decode(data: bytes) -> Image.Image:
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
    """Short side to `resolution` (antialiased), then the centre square.

    Only that square is computed: a strip of 1 x 50,000 pixels would otherwise take gigabytes.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = (left, top, left + side, top + side)
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=square)


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
