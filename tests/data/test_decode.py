"""Image files into RGB: which decoders run, what is seen through transparency, and how much memory it takes."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data import decode
from concept_trak.data.decode import ENDINGS, decode_image, jxl_size, readable_formats
from concept_trak.data.sample import Sample, samples
from tests.data.files import encoded, noise, plan
from tests.data.heic import HEIC
from tests.data.inputs import labelled

CLEAR = (200, 100, 0, 0)


def pixels(data: bytes, **options) -> np.ndarray:
    return np.asarray(decode_image(data, **options))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "TGA", "QOI", "JXL", "JPEG2000", "BMP"])
def test_lossless_pictures_are_those_that_were_saved(form):
    image = noise(37, 21)
    options = {"lossless": True} if form in ("WEBP", "JXL") else {}
    assert np.array_equal(pixels(encoded(image, form, **options)), np.asarray(image))


def test_jpeg_and_png_are_what_pillow_gives():
    for form in ("JPEG", "PNG", "GIF", "AVIF", "WEBP"):
        data = encoded(noise(64, 40), form)
        assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))), form


def test_heic_is_read():
    image = pixels(HEIC).astype(int)
    assert abs(image[:, :7] - (255, 0, 0)).max() <= 4
    assert abs(image[:, 9:] - (0, 255, 0)).max() <= 4


def test_a_plugin_that_is_not_installed_is_named(monkeypatch):
    kept = tuple(f for f in readable_formats() if f not in ("HEIF", "JXL"))
    monkeypatch.setattr(decode, "readable_formats", lambda: kept)
    with pytest.raises(UserError, match=r"HEIF is read by a plugin that is not installed here: pip install pi-heif"):
        decode_image(HEIC)
    with pytest.raises(UserError, match=r"JXL is read by a plugin .*: pip install pillow-jxl-plugin"):
        decode_image(encoded(noise(4, 4), "JXL"))


@pytest.mark.parametrize("form", ["EPS", "PDF", "PCX", "SGI", "ICNS", "SPIDER", "MSP", "XBM"])
def test_no_decoder_outside_of_the_list_runs(form, monkeypatch):
    """EPS would start Ghostscript; the others are not what people train on."""
    data = encoded(Image.new("1" if form in ("MSP", "XBM") else "F" if form == "SPIDER" else "RGB", (32, 32)), form)
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("a program was started"))
    with pytest.raises(UserError, match=r"PostScript, which is a program|a PDF|no image format that is known"):
        decode_image(data)


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("drop", (200, 100, 0)), ("checker", (255, 255, 255))],
)
def test_what_is_seen_through_a_transparent_picture(transparency, expected, tmp_path):
    data = encoded(Image.new("RGBA", (20, 20), CLEAR))
    image = pixels(data, transparency=transparency)
    assert tuple(image[0, 0]) == expected
    assert tuple(image[0, 8]) == ((204, 204, 204) if transparency == "checker" else expected)
    config = labelled(tmp_path, "a.png", image=data, transparency=transparency)
    (sample,) = samples(plan(config)[0], config, 20)
    assert isinstance(sample, Sample)
    assert sample.pixels is not None
    assert np.array_equal(((sample.pixels + 1) * 127.5).round().permute(1, 2, 0).numpy(), image)


def test_drop_is_what_a_plain_conversion_gives():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    for data in (encoded(palette, transparency=1), encoded(Image.new("LA", (3, 3), (90, 0))), encoded(noise(5, 5))):
        assert np.array_equal(
            pixels(data, transparency="drop"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_large_pictures_are_composed_as_small_ones_are(mode, monkeypatch):
    """A large picture is composed some lines at a time, here one by one."""
    data = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 19, 4), np.uint8)).convert(mode), "TIFF"
    )
    rgba = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    checkered = pixels(data, transparency="checker")
    monkeypatch.setattr(decode, "STRIP_PIXELS", 1)
    assert np.array_equal(pixels(data), expected)
    assert np.array_equal(pixels(data, transparency="checker"), checkered)


def test_sixteen_bits_are_rounded_to_eight():
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = (levels / 257).round()
    for form in ("PNG", "TIFF", "JPEG2000"):
        assert np.array_equal(pixels(encoded(Image.fromarray(levels), form))[..., 0], expected), form
    header = b"P5 256 256 65535\n"
    assert np.array_equal(pixels(header + levels.astype(">u2").tobytes())[..., 0], expected), "PGM"


def test_profiles_are_not_applied_as_training_scripts_do_not():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = noise(16, 16)
    assert np.array_equal(pixels(encoded(image, icc_profile=profile)), np.asarray(image))


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 48), (160, 90), (513, 512), (1000, 777), (3000, 17), (128, 64)])
def test_the_size_of_a_jxl_is_read_before_it_is_decoded(size, container):
    data = encoded(Image.new("RGB", size), "JXL", use_container=container)
    assert jxl_size(data) == size
    with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} pixels, more than data\.most_pixels=0"):
        decode_image(data, most_pixels=0)


def test_other_files_have_no_size_of_a_jxl():
    assert jxl_size(b"") is None
    assert jxl_size(encoded(noise(4, 4))) is None
    assert jxl_size(b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 0, b"jxlx")) is None
    assert jxl_size(b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 8, b"free") * 3) is None


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from(["HEIC", "JXL", "JPEG2000", "QOI", "PPM", "MPO"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.data(),
)
def test_damaged_pictures_of_newer_formats_are_a_user_error_or_decoded(form, changes, data):
    damaged = bytearray(HEIC if form == "HEIC" else encoded(noise(12, 9), form))
    for where, value in changes:
        damaged[round(where * (len(damaged) - 1))] = value
    for candidate in (bytes(damaged), bytes(damaged[: data.draw(st.integers(0, len(damaged)))])):
        try:
            assert decode_image(candidate).mode == "RGB"
        except UserError:
            continue


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "RGB"])
def test_memory_for_a_large_picture_stays_below_nine_bytes_a_pixel(mode, tmp_path):
    """In a process of its own, whose peak is its own."""
    side = 4000
    image = Image.fromarray(np.zeros((side, side), np.uint16)) if mode == "I;16" else Image.new(mode, (side, side))
    (tmp_path / "a.png").write_bytes(encoded(image, compress_level=1))
    code = (
        "import resource, sys; from concept_trak.data.decode import decode_image, readable_formats\n"
        "readable_formats(); data = open(sys.argv[1], 'rb').read()\n"
        "peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); decode_image(data); print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert int(run.stdout) < 9 * side * side


def test_every_ending_of_a_folder_is_decoded_by_some_format():
    registered = {
        e.removeprefix(".") for e, form in Image.registered_extensions().items() if form in readable_formats()
    }
    assert set(ENDINGS) <= registered | {"mpo"}


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match=r"data\.transparency='pink'; expected one of: white, black, checker, drop"):
        DataConfig(transparency="pink")
    with pytest.raises(UserError, match=r"data\.most_pixels=0; expected at least 1"):
        DataConfig(most_pixels=0)
    with pytest.raises(UserError, match=r"data\.spread_frames=true spreads the frames of a clip; set data\.frames"):
        DataConfig(spread_frames=True)
