"""The frames of a clip: an animated GIF, WebP, PNG or AVIF file, as RGB images."""

from collections.abc import Iterator

from PIL import Image

from concept_trak import UserError
from concept_trak.data.decode import MOST_PIXELS, decoding, open_image, rgb_image


class TooFewFrames(UserError):
    """A file that has fewer frames than a clip of the model."""


def decode_clip(
    data: bytes, frames: int, spread: bool = False, transparency: str = "white", most_pixels: int = MOST_PIXELS
) -> Iterator[Image.Image]:
    """Some frames of a file, one at a time, each as `decode_image` gives the first.

    Args:
        data: the bytes of the file.
        frames: how many; each file must have as many.
        spread: whether they are spread evenly over the file, from its first to its last frame, or are its first ones.
        transparency, most_pixels: as of `decode_image`, for each frame.

    Raises:
        TooFewFrames: the file has fewer.
        UserError: a frame cannot be read.
    """
    with decoding(data):
        image = open_image(data, most_pixels)
        start = int(bool(image.info.get("default_image")))  # a PNG's picture for readers that know no animation
        count = getattr(image, "n_frames", 1) - start
    if count < frames:
        raise TooFewFrames(f"it has {count} frame{'s' * (count != 1)}, and a clip of the model has {frames}")
    for i in range(frames):
        with decoding(data):
            image.seek(start + (i * (count - 1) // max(frames - 1, 1) if spread else i))
            image.load()
            frame = rgb_image(image, transparency)
        yield frame
