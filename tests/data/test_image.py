"""Image files as people have them: what is usable gives the right pixels, the rest one kind of error."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.decode import decode_image
from concept_trak.data.image import center_crop, read_examples, read_fitted_image, read_image, to_png, to_tensor
from concept_trak.data.sample import Sample, samples
from concept_trak.models.encode import decode_pixels
from tests.data.files import encoded, noise, plan, rows, write
from tests.tolerances import LEVELS

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def bomb(side: int = 20_000) -> bytes:
    """A PNG of a few bytes that says it has so many pixels on each side."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND")
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


BROKEN = {
    "truncated": encoded(noise(40, 40), "JPEG")[:-300],
    "zero bytes": b"",
    "not an image": b"<html>404 Not Found</html>",
    "decompression bomb": bomb(),
    "broken chunk": encoded(noise(40, 40))[:60] + b"\xff" * 40,
    "truncated AVIF": encoded(noise(40, 40), "AVIF")[:300],
}


def rotated() -> bytes:
    """Red on the left, green on the right, and a note that the camera lay on its side (6: turn clockwise to see)."""
    image = Image.new("RGB", (8, 4), RED)
    image.paste(GREEN, (4, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


def half_transparent_palette() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    return encoded(image, transparency=1)


def animated() -> bytes:
    return encoded(Image.new("RGB", (2, 1), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (2, 1), GREEN)])


USABLE = {
    "CMYK": (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), [[RED, RED]]),
    "16 bits": (encoded(Image.fromarray(np.array([[0, 51_400, 65_535]], np.uint16))), [[(0,) * 3, (200,) * 3, WHITE]]),
    "animated": (animated(), [[RED, RED]]),
    "rotated": (rotated(), [[RED] * 4] * 4 + [[GREEN] * 4] * 4),
    "RGBA on white": (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0))), [[WHITE]]),
    "half transparent": (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51))), [[(255, 204, 204)]]),
    "grey with alpha": (encoded(Image.new("LA", (1, 1), (0, 0))), [[WHITE]]),
    "transparent palette": (half_transparent_palette(), [[RED, WHITE]]),
    "one bit": (encoded(Image.new("1", (1, 1), 1)), [[WHITE]]),
    "grey": (encoded(Image.new("L", (1, 1), 7)), [[(7, 7, 7)]]),
}


@pytest.mark.parametrize("kind", USABLE)
def test_a_usable_file_is_seen_as_a_person_sees_it(kind):
    data, expected = USABLE[kind]
    image = decode_image(data)
    assert image.mode == "RGB"
    assert np.asarray(image).tolist() == [[list(p) for p in line] for line in expected], f"{kind} is read wrongly"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_a_value_error_that_says_the_same_every_time(kind):
    texts = set()
    for _ in range(2):
        with pytest.raises(ValueError, match=r".+") as caught:
            decode_image(bytes(bytearray(BROKEN[kind])))
        texts.add(str(caught.value))
    assert len(texts) == 1, "an address in the message makes two computations of one shard differ"
    assert " at 0x" not in texts.pop()


@pytest.mark.parametrize(("side", "most"), [(12_000, 128_000_000), (20_000, 128_000_000), (90, 8_000)])
def test_an_image_of_unreasonable_size_is_refused_before_it_is_decoded(side, most):
    """Whatever becomes of warnings; Pillow's own limit, of the process, stays as it was."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=rf"{side} x {side} pixels, more than data\.most_pixels={most}; raise it"):
            decode_image(bomb(side), most_pixels=most)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_broken_files_become_rejects_and_counts_add_up(tmp_path):
    kinds = {**{k: data for k, (data, _) in USABLE.items()}, **BROKEN, "null": None}
    count = len(kinds) + 1
    images = [{"bytes": data, "path": kind} for kind, data in kinds.items()] + [None]
    data = DataConfig(uri=write(tmp_path / "a.parquet", rows(count, image=images)), id_column="id", shard_rows=5)
    seen = [list(samples(shard, data, 8)) for shard in plan(data)]
    again = [one for shard in plan(data) for one in samples(shard, data, 8)]
    flat = [one for part in seen for one in part]
    assert [one.row for one in flat] == list(range(count)), "a row was lost, or came twice"
    assert [i for i, one in enumerate(flat) if isinstance(one, Sample)] == list(range(len(USABLE)))
    rejects = [one for one in flat if not isinstance(one, Sample)]
    assert len(rejects) == len(BROKEN) + 2
    for reject, other in zip(rejects, again[len(USABLE) :], strict=True):
        assert reject == other, "two readings of one row must say the same, or equal shards have other bytes"
        assert reject.reason == ("not_embedded" if reject.row == count - 2 else "decode")
        assert reject.message
        assert (reject.sample_id, reject.source) == (f"s{reject.row}", plan(data)[0].source)


FORMS = {
    form: encoded(noise(12, 9), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "ICO", "TGA")
}


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(sorted(FORMS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.data())
def test_whatever_is_damaged_is_decoded_or_a_value_error(form, changes, data):
    """Decoders of damaged bytes raise what they stumble over; none of it may stop a shard."""
    damaged = bytearray(FORMS[form])
    for where, value in changes:
        damaged[round(where * (len(damaged) - 1))] = value
    end = data.draw(st.integers(0, len(damaged)))
    for candidate in (bytes(damaged), bytes(damaged[:end])):
        try:
            image = decode_image(candidate)
        except ValueError:
            continue
        assert image.mode == "RGB"


def centre(image: Image.Image, resolution: int) -> Image.Image:
    """Resized as a whole, then cropped: the definition, which computes far more than it keeps."""
    scale = resolution / min(image.size)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - resolution) // 2, (whole.height - resolution) // 2
    return whole.crop((left, top, left + resolution, top + resolution))


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 32), (32, 96), (128, 64), (64, 128), (16, 16), (16, 48)])
def test_the_short_side_is_resized_and_the_centre_kept(size):
    image = noise(*size).point(lambda level: 64 + level // 2)  # no clipped overshoot, which depends on the pass order
    difference = np.asarray(center_crop(image, 32)).astype(int) - np.asarray(centre(image, 32))
    assert abs(difference).max() <= LEVELS, f"{size}: not the centre square of the image resized as a whole"


@pytest.mark.parametrize("size", [(33, 32), (32, 47), (101, 57), (7, 5), (1, 50_000), (1, 1)])
def test_every_size_becomes_the_models(size):
    assert center_crop(noise(*size), 32).size == (32, 32)


def test_an_image_of_the_models_size_loses_nothing():
    image = noise(32, 32)
    assert np.array_equal(np.asarray(center_crop(image, 32)), np.asarray(image)), "resampling at scale 1 must not blur"
    wide = noise(47, 32)
    assert np.array_equal(np.asarray(center_crop(wide, 32)), np.asarray(wide)[:, 7:39]), "only a crop was needed"


def test_shrinking_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([[0], [255]], np.uint8), (64, 128))).convert("RGB")
    small = np.asarray(center_crop(stripes, 16)).astype(int)
    assert abs(small[2:-2] - 127.5).max() < 20, "fine stripes must become grey, not an alias of themselves"


def test_the_tensor_runs_from_minus_one_to_one_and_png_returns_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, 255 - levels], 2))
    x = to_tensor(image)
    assert (x.dtype, x.shape) == (torch.float32, (3, 16, 16))
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert x[0, 0, 1].item() == np.float32(1) / np.float32(127.5) - 1, "rows and columns, or the scale, are wrong"
    again = Image.open(io.BytesIO(to_png(x)))
    assert np.array_equal(np.asarray(again), np.asarray(image)), "PNG must lose nothing"
    clipped = np.asarray(decode_image(to_png(torch.tensor([-3.0, 3.0, 0.0]).reshape(3, 1, 1))))
    assert clipped.tolist() == [[[0, 255, 128]]]


def test_an_image_to_ask_about_is_read_or_refused_by_name(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encoded(noise(4, 4)))
    assert read_image(str(good)) == good.read_bytes()
    assert read_image(f"file://{good}") == good.read_bytes()
    for data in (b"", b"no picture", bomb(), BROKEN["broken chunk"]):
        bad.write_bytes(data)
        with pytest.raises(ValueError, match=r"bad\.png' cannot be read .* expected a picture file"):
            read_image(str(bad))
    with pytest.raises(ValueError, match=r"missing\.png' cannot be read"):
        read_image(str(tmp_path / "missing.png"))


@pytest.mark.parametrize(("transparency", "corner"), [("white", 255), ("black", 0), ("drop", 7)])
def test_a_concepts_own_pictures_are_decoded_as_training_images_are(tmp_path, transparency, corner):
    path, pixels = tmp_path / "a.png", np.full((12, 20, 4), 7, np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(path)
    (example,) = read_examples([str(path)], 8, transparency)
    image = read_fitted_image(str(path), 8, transparency)
    for data in (example, image):
        assert np.asarray(Image.open(io.BytesIO(data))).tolist() == np.full((8, 8, 3), corner).tolist()
    for read in (read_examples, read_fitted_image):
        with pytest.raises(UserError, match=r"20 x 12 pixels, more than data.most_pixels=239"):
            read([str(path)] if read is read_examples else str(path), 8, transparency, 239)


def test_a_fitted_image_gives_the_model_the_very_numbers_of_the_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)).save(path)
    assert torch.equal(decode_pixels([read_fitted_image(str(path), 16)], 16), decode_pixels([path.read_bytes()], 16))
