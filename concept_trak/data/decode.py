"""Decode image files of any format to RGB pixels of 8 bits, as training scripts do.

Only the decoders of a fixed list are used, none of which starts a program (as Ghostscript for EPS). Colours are those
of Pillow's `convert("RGB")`: embedded ICC profiles are not applied, because training scripts do not apply them.
"""

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from concept_trak import UserError
from concept_trak.data.text import one_line

MOST_PIXELS = 128_000_000
"""Of one image, where `data.most_pixels` does not say otherwise; decoding takes up to 9 bytes for each."""
FORMATS = (
    *("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO", "QOI"),
    *("HEIF", "JXL"),
)
ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "gif", "tif", "tiff", "avif", "avifs"),
    *("jp2", "j2k", "jpf", "jpx", "j2c", "jpc", "ppm", "pgm", "pbm", "pnm", "tga", "qoi", "mpo"),
    *("heic", "heif", "hif", "jxl"),
)
PLUGINS = {"HEIF": "pi-heif", "JXL": "pillow-jxl-plugin"}
_NOT_READ = (
    (b"%!PS", "PostScript, which is a program"),
    (b"\xc5\xd0\xd3\xc6", "PostScript, which is a program"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"<!DO", "a web page"),
    (b"<htm", "a web page"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself"),
)
STRIP_PIXELS = 1 << 20  # converted at a time, so that no step has a second copy of a large image
SQUARE = 8  # side of a square of the checkerboard, in pixels of the file
_opening = threading.Lock()  # Pillow's limit is one number of the process


def decode_image(data: bytes, transparency: str = "white", most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The picture upright, RGB, the first frame of an animation, 16 bits scaled to 8.

    Args:
        data: the bytes of the file.
        transparency: what replaces transparent pixels: white, black, checker (a checkerboard), or drop (the colours
            that the file has there, as `convert("RGB")` gives them).
        most_pixels: width times height, above which an image is refused before it is decoded.

    Raises:
        UserError: it cannot be read; the message has the reason, and is the same every time.
    """
    with decoding(data):
        return _rgb(_upright(data, most_pixels), transparency)


@contextmanager
def decoding(data: bytes) -> Iterator[None]:
    """Any failure of a decoder of these bytes as a `UserError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata leaves the pixels usable
            yield
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UserError(_unidentified(data)) from None
    except Exception as error:  # decoders of damaged bytes raise anything: RuntimeError, SyntaxError, ...
        raise UserError(f"{type(error).__name__}: {one_line(error)}") from error


def rgb_image(image: Image.Image, transparency: str = "white") -> Image.Image:
    """An open image upright and RGB, as `decode_image` gives that of a file; the image itself stays as it is.

    Raises:
        UserError: its pixels are floating-point numbers or 32-bit integers.
    """
    _require_range(image)
    return _rgb(ImageOps.exif_transpose(image), transparency)


def image_format(data: bytes) -> str:
    """The format of an image file, from its bytes alone, in lower case: png, jpeg, webp, ..."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(data, MOST_PIXELS) as image:
            return (image.format or "image").lower()


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats of the list that can be read here; those of plugins only if the plugins are installed."""
    missing = set()
    try:
        import pi_heif

        pi_heif.register_heif_opener()
    except ImportError:
        missing.add("HEIF")
    try:
        import pillow_jxl  # noqa: F401  # registers itself
    except ImportError:
        missing.add("JXL")
    Image.init()
    return tuple(f for f in FORMATS if f not in missing and f in Image.OPEN)


def open_image(data: bytes, most_pixels: int) -> Image.Image:
    """The image of a file, whose pixels are not decoded yet.

    Raises:
        UserError: it has too many pixels.
        Exception: whatever else a decoder raises for damaged bytes (see `decoding`).
    """
    if size := jxl_size(data):  # its plugin decodes while it opens
        _require_pixels(*size, most_pixels)
    formats = readable_formats()
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    _require_pixels(*image.size, most_pixels)
    return image


def _require_pixels(width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise UserError(
            f"has {width} x {height} pixels, more than data.most_pixels={most_pixels}; raise it, or shrink the image"
        )


def _upright(data: bytes, most_pixels: int) -> Image.Image:
    image = open_image(data, most_pixels)
    image.load()
    _require_range(image)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _require_range(image: Image.Image) -> None:
    """Check that the value of white is defined: formats with 32 bits a channel have none, except PPM."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise UserError(f"its pixels are {kind}, of which none is known to be white; save it with 8 or 16 bits")


def _rgb(upright: Image.Image, transparency: str) -> Image.Image:
    if upright.mode.startswith("I"):
        return _in_strips(upright, lambda strip, top: _eight_bits(strip))
    if transparency != "drop" and (upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info):
        return _in_strips(upright, lambda strip, top: _composed(strip.convert("RGBA"), transparency, top))
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image, int], Image.Image]) -> Image.Image:
    """Apply a conversion of single pixels to the whole image, some lines at a time."""
    out, lines = Image.new("RGB", image.size), max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, lines):
        strip = image.crop((0, top, image.width, min(top + lines, image.height)))
        out.paste(convert(strip, top), (0, top))
    return out


def _eight_bits(strip: Image.Image) -> Image.Image:
    """round(x / 257), in whole numbers: 0 ... 65535 to 0 ... 255."""
    levels = np.asarray(strip).clip(0, 65535).astype(np.uint32)
    return Image.fromarray(((2 * levels + 257) // 514).astype(np.uint8)).convert("RGB")


def _composed(strip: Image.Image, transparency: str, top: int) -> Image.Image:
    return Image.alpha_composite(_backdrop(transparency, strip.size, top), strip).convert("RGB")


def _backdrop(transparency: str, size: tuple[int, int], top: int) -> Image.Image:
    """The background of an image's lines from `top` on: RGBA of `size`, opaque."""
    if transparency != "checker":
        return Image.new("RGBA", size, transparency)
    down, across = np.arange(top, top + size[1])[:, None] // SQUARE, np.arange(size[0])[None] // SQUARE
    levels = np.where((down + across) % 2, np.uint8(204), np.uint8(255))
    return Image.fromarray(levels).convert("RGBA")


def _unidentified(data: bytes) -> str:
    """Why no decoder of the list takes the bytes."""
    start = data[:512].lstrip()
    if kind := next((kind for mark, kind in _NOT_READ if start.startswith(mark)), ""):
        return f"it is {kind}; expected a picture such as JPEG or PNG"
    missing = set(PLUGINS) - set(readable_formats())
    plugin = "HEIF" if data[4:8] == b"ftyp" else "JXL" if jxl_size(data) else ""
    if plugin in missing:
        return f"{plugin} is read by a plugin that is not installed here: pip install {PLUGINS[plugin]}"
    return f"no image format that is known: {len(data)} bytes, beginning {data[:8]!r}"


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a JPEG XL file states, ISO/IEC 18181-1 annex D.3 (SizeHeader); None of other files."""
    codestream = data if data.startswith(b"\xff\n") else _jxl_codestream(data)
    if not codestream.startswith(b"\xff\n"):
        return None
    bits, place = int.from_bytes(codestream[2:18], "little"), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> (place - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[take(3)]
    return (height * ratio[0] // ratio[1] if ratio[0] else side()), height


def _jxl_codestream(data: bytes) -> bytes:
    """The beginning of the code stream inside of the boxes of a JPEG XL file; empty where there is none."""
    if not data.startswith(b"\0\0\0\x0cJXL \r\n\x87\n"):
        return b""
    place = 12
    while place + 8 <= len(data):
        length, kind, header = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if length == 1:
            length, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            start = place + header + (4 if kind == b"jxlp" else 0)
            return data[start : start + 18]
        if length < header:
            return b""
        place += length
    return b""
