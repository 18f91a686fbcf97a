"""Real handwritten digits in colour: the 1,797 scans of 8 x 8 pixels in scikit-learn (Alpaydin and Kaynak 1998)."""

from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from concept_trak.data.drawing import PAINT, background

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@cache
def scans() -> tuple[np.ndarray, ...]:
    """For each digit its scans, float64 `[n, 8, 8]` in [0, 1], 1 where there is ink.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # an extra: only this data set needs it
    except ImportError as error:
        raise ValueError(
            f"the scans of the digits come with scikit-learn, which cannot be imported ({error}); install the extra "
            "`benchmark` (pip install -e '.[benchmark]') or choose another data set"
        ) from error

    found: Any = load_digits()
    return tuple(found.images[found.target == digit] / 16 for digit in range(10))


def render(digit: str, colour: str, rng: np.random.Generator, resolution: int = 16) -> Image.Image:
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
