"""What a concept that no prompt names is given by: pictures at the model's own size, or a classifier's file."""

from collections.abc import Iterator, Sequence

import fsspec

from concept_trak.data.image import decode, fit, png, read

MOST = 256
"""Examples a concept may have: they travel to the workers with the question."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def examples(paths: Sequence[str], resolution: int) -> tuple[bytes, ...]:
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
    image = decode(read(path))
    if min(image.size) < resolution:
        raise ValueError(
            f"the example {path} has {image.width} x {image.height} pixels and the model draws {resolution} x "
            f"{resolution}: enlarged, it would ask for what is blurred; give a larger picture"
        )
    return png(fit(image, resolution))


def whole_file(path: str) -> bytes:
    """The bytes of a file, local or a URL.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()  # type: ignore[union-attr]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be read ({error}); give a .safetensors file") from None
