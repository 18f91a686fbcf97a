"""Sizes of images from the first bytes of their files are those that Pillow reads."""

import io
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data.image_size import HEAD_BYTES, METADATA_BYTES, image_size, size_at_hand
from concept_trak.data.survey import indexed_here
from tests.data.test_webdataset import packed

WIDTH, HEIGHT = 300, 17
LONG = {"exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(100_000)}
FILES: Mapping[str, tuple[str, str, dict[str, Any]]] = {  # mode of the pixels, format, options
    "jpeg": ("RGB", "JPEG", {}),
    "progressive jpeg": ("RGB", "JPEG", {"progressive": True}),
    "grey jpeg": ("L", "JPEG", {}),
    "jpeg of CMYK": ("CMYK", "JPEG", {}),
    "jpeg with a comment": ("RGB", "JPEG", {"comment": b"c" * (HEAD_BYTES - 30)}),
    "jpeg with long metadata": ("RGB", "JPEG", LONG),
    "png": ("RGB", "PNG", {}),
    "png of 16 bits": ("I;16", "PNG", {}),
    "palette png": ("P", "PNG", {}),
    "webp": ("RGB", "WEBP", {}),
    "lossless webp": ("RGB", "WEBP", {"lossless": True}),
    "webp with alpha": ("RGBA", "WEBP", {}),
    "webp with metadata": ("RGB", "WEBP", {"icc_profile": bytes(5000)}),
}


def saved(kind: str) -> bytes:
    mode, form, options = FILES[kind]
    out = io.BytesIO()
    Image.new(mode, (WIDTH, HEIGHT)).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", FILES)
def test_a_size_is_that_of_pillow_and_a_cut_file_has_it_or_none(kind):
    data = saved(kind)
    assert (
        image_size(data) == size_at_hand(io.BytesIO(b"abc" + data), 3, len(data)) == Image.open(io.BytesIO(data)).size
    )
    cut = {image_size(data[:end]) for end in range(min(len(data), 3000))}
    assert cut <= {None, (WIDTH, HEIGHT)}


@pytest.mark.parametrize("cut", range(HEAD_BYTES - 24, HEAD_BYTES + 4))
def test_a_frame_header_across_the_bytes_that_are_read_at_a_time(cut):
    """A comment ends so that the frame header begins at every place around the end of the first bytes."""
    data = saved("jpeg")
    start = data.index(b"\xff\xc0")
    comment = b"\xff\xfe" + (cut - start - 2).to_bytes(2, "big") + bytes(cut - start - 4)
    data = data[:start] + comment + data[start:]
    assert Image.open(io.BytesIO(data)).size == size_at_hand(io.BytesIO(data), 0, len(data)) == (WIDTH, HEIGHT)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    start=st.sampled_from([b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", *(
        b"RIFF\0\0\0\0WEBP" + chunk + bytes(4) for chunk in (b"VP8X", b"VP8L\x2f", b"VP8 ", b"ICCP"))]),
    rest=st.binary(max_size=60),
)  # fmt: skip
def test_damaged_files_have_a_positive_size_or_none(start, rest):
    size = image_size(start + rest)
    assert size == size_at_hand(io.BytesIO(start + rest), 0, len(start + rest))
    assert size is None or all(0 < side < 1 << 31 for side in size)


def test_a_file_of_fill_bytes_is_not_walked_to_its_end():
    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            read.append(size)
            return super().read(size)

    read = list[int | None]()
    data = b"\xff\xd8" + b"\xff" * (3 * METADATA_BYTES)
    assert size_at_hand(Counted(data), 0, len(data)) is None
    assert sum(size or 0 for size in read) < 1.1 * METADATA_BYTES


def test_an_index_has_the_sizes_of_the_images_of_a_tar(tmp_path):
    members = [
        *((f"{n:02d}.{FILES[kind][1].lower()}", saved(kind)) for n, kind in enumerate(FILES)),
        ("50.png", b"no image"), ("51.txt", b"no image"), ("52.png", saved("png")), ("52.webp", saved("webp")),
    ]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(packed(members))
    index = indexed_here(DataConfig(uri=str(tmp_path), caption_column="txt")).sources[0].index
    assert index is not None
    sizes = list(zip(index["width"].to_pylist(), index["height"].to_pylist(), strict=True))
    assert sizes == [(WIDTH, HEIGHT)] * len(FILES) + [(None, None)] * 3
