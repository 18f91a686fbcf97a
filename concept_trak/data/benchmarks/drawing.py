"""Shapes as a person with a pencil draws them: outlined, of random size and place, on a light gradient.

Real handwritten digits in colour: the 1,797 scans of 8 x 8 pixels in scikit-learn (Alpaydin and Kaynak 1998).
"""

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from concept_trak import UserError

SHAPES = ("triangle", "circle", "square")
COLOURS = ("red", "green", "blue")
PAINT = {"red": (215, 45, 45), "green": (45, 165, 70), "blue": (50, 80, 215)}
PURE = {"red": (255, 0, 0), "blue": (0, 0, 255)}
_CORNERS = {"triangle": 3, "circle": 64, "square": 4}
_OVERSAMPLING = 4  # drawn larger and averaged down: antialiasing, and sizes finer than a pixel


def draw_shape(shape: str, colour: str, rng: np.random.Generator, resolution: int = 32) -> Image.Image:
    """An outlined shape of random size and place on a light gradient, RGB, `resolution` pixels square.

    Shapes of one size have equal areas (that of a circle 14 to 20 pixels across, of 32), so that the number of coloured
    pixels does not tell the shape.
    """
    size = resolution * _OVERSAMPLING
    radius = rng.uniform(7, 10) / 32 * size * _equal_area(_CORNERS[shape])
    middle = _place(shape, radius, (0, size), size, rng)
    image = Image.fromarray(background(rng, size))
    _draw_outlined(image, shape, colour, radius, middle, rng)
    return image.resize((resolution, resolution), Image.Resampling.BOX)


def draw_two_shapes(
    first: tuple[str, str], second: tuple[str, str], rng: np.random.Generator, resolution: int = 32
) -> Image.Image:
    """A large shape and a small one side by side, each a (shape, colour), otherwise as `draw_shape`.

    The large one is to the left or to the right, and no part of one is behind the other. Of 32 pixels, a circle is 11
    to 14 across if it is large, and 6 to 8 if it is small.
    """
    size = resolution * _OVERSAMPLING
    image, is_left = Image.fromarray(background(rng, size)), bool(rng.random() < 0.5)
    border = size * (20 if is_left else 12) / 32
    halves = ((0, border), (border, size)) if is_left else ((border, size), (0, border))
    for (shape, colour), half, radii in zip((first, second), halves, ((5.5, 7), (3, 4)), strict=True):
        radius = rng.uniform(*radii) / 32 * size * _equal_area(_CORNERS[shape])
        _draw_outlined(image, shape, colour, radius, _place(shape, radius, half, size, rng), rng)
    return image.resize((resolution, resolution), Image.Resampling.BOX)


def _place(shape: str, radius: float, columns: tuple[float, float], size: int, rng: np.random.Generator) -> np.ndarray:
    """A random middle (x, y) of a shape that lies in these columns of an image, a pixel from every border."""
    edge = _polygon(_CORNERS[shape], radius)
    low, high = edge.min(axis=0), edge.max(axis=0)
    start, stop = np.array([columns[0], 0]), np.array([columns[1], size])
    return rng.uniform(start + 1 - low, stop - 1 - high)


def _draw_outlined(
    image: Image.Image, shape: str, colour: str, radius: float, middle: np.ndarray, rng: np.random.Generator
) -> None:
    pencil, corners, outline = ImageDraw.Draw(image), _CORNERS[shape], image.width / 32 * 1.25
    edge, inside = _polygon(corners, radius), _polygon(corners, radius - outline / math.cos(math.pi / corners))
    pencil.polygon((edge + middle).ravel().tolist(), fill=_colour(rng.uniform(10, 60, 1).repeat(3)))
    pencil.polygon((inside + middle).ravel().tolist(), fill=_colour(PAINT[colour] + rng.uniform(-25, 25, 3)))


def draw_shape_as_published(shape: str, colour: str, rng: np.random.Generator, resolution: int = 64) -> Image.Image:
    """As in the synthetic experiment of Concept-TRAK: pure colour, black outline, white page; only the place varies.

    Of 64 pixels the shape reaches 10 to each side of its middle, and the outline is 2 wide.
    """
    size = resolution * _OVERSAMPLING
    reach, outline = round(10 / 64 * size), round(2 / 64 * size)
    x, y = rng.uniform(reach, size - 1 - reach, 2)
    box = (x - reach, y - reach, x + reach, y + reach)
    image = Image.new("RGB", (size, size), (255, 255, 255))
    pencil, ink, paint = ImageDraw.Draw(image), (0, 0, 0), PURE[colour]
    if shape == "circle":
        pencil.ellipse(box, fill=paint, outline=ink, width=outline)
    else:
        assert shape == "triangle", f"the published experiment has no {shape}"
        corners = [(x, y - reach), (x + reach, y + reach), (x - reach, y + reach)]
        pencil.polygon(corners, fill=paint, outline=ink, width=outline)
    return image.resize((resolution, resolution), Image.Resampling.BOX)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A light grey with a slight tint and a soft gradient in a random direction, uint8 `[size, size, 3]`."""
    base = rng.uniform(190, 240) + rng.uniform(-8, 8, 3)
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 12)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    ramp = strength * (math.cos(angle) * x + math.sin(angle) * y)
    return np.clip(base + ramp[..., None], 0, 255).astype(np.uint8)


def _equal_area(corners: int) -> float:
    """Circumradius of the regular polygon with the area of the unit circle: n/2 R^2 sin(2 pi / n) = pi."""
    return math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners)))


def _polygon(corners: int, radius: float) -> np.ndarray:
    """Corners of a regular polygon around the origin that stands on a flat side (y points down), `[corners, 2]`."""
    angle = math.pi / 2 + math.pi / corners + 2 * math.pi / corners * np.arange(corners)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _colour(channels: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in np.clip(channels, 0, 255))
    return red, green, blue


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@cache
def scans() -> tuple[np.ndarray, ...]:
    """For each digit its scans, float64 `[n, 8, 8]` in [0, 1], 1 where there is ink.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # an extra: only this data set needs it
    except ImportError as error:
        raise UserError(
            f"the scans of the digits come with scikit-learn, which cannot be imported ({error}); install the extra "
            "`benchmark` (pip install -e '.[benchmark]') or choose another data set"
        ) from error

    digits: Any = load_digits()
    return tuple(digits.images[digits.target == digit] / 16 for digit in range(10))


def draw_digit(digit: str, colour: str, rng: np.random.Generator, resolution: int = 16) -> Image.Image:
    """A scan of `digit` in ink of about `colour`, up to a pixel off the middle, on a light gradient; RGB."""
    ink = scans()[DIGITS.index(digit)]
    scan = Image.fromarray(np.uint8(255 * ink[rng.integers(len(ink))]))
    side = 7 * resolution // 8
    place = rng.integers(0, resolution - side + 1, 2)
    mask = Image.new("L", (resolution, resolution))
    mask.paste(scan.resize((side, side), Image.Resampling.BICUBIC), (int(place[0]), int(place[1])))
    paint = np.clip(PAINT[colour] + rng.uniform(-25, 25, 3), 0, 255).astype(np.uint8)
    page = Image.fromarray(background(rng, resolution))
    page.paste(Image.new("RGB", page.size, tuple(paint.tolist())), mask=mask)
    return page
