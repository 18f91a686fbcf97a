"""From a row to a sample: which caption of several, where it is cut, which size, and what is refused."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data.image import nearest_bucket, resize_crop
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from concept_trak.store.part import Reject
from tests.data import files
from tests.data.files import encoded, noise, plan, write
from tests.tolerances import LEVELS


def read(data: DataConfig, resolution: int = 4) -> list[Sample | Reject]:
    survey(data)
    return [one for shard in plan(data) for one in samples(shard, data, resolution)]


def captions(data: DataConfig) -> list[str]:
    return [one.caption if isinstance(one, Sample) else one.reason for one in read(data)]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("first", ["a", "y", "a3", "no_caption"]),
        ("join", ["a, x", "y", "a3, b3, x3", "no_caption"]),
    ],
)
def test_of_several_captions_the_first_or_all(tmp_path, how, expected):
    """A column may hold a list; what is empty, or said twice, is passed over."""
    values = files.rows(4, caption=[["a"], [""], ["a3", "b3", "a3"], None], alt=["x", "y", "x3", " "])
    uri = write(tmp_path / "a.parquet", values, kinds={"caption": pa.list_(pa.string())})
    assert captions(DataConfig(uri=uri, other_captions=("alt",), captions=how)) == expected


def test_one_of_several_captions_is_the_same_whatever_the_shards_and_all_are_drawn(tmp_path):
    count, words = 60, ("a", "b", "c")
    columns = {w: [w] * count for w in words}
    uri = write(tmp_path / "a.parquet", files.rows(count, **columns))
    asked = {"caption_column": "a", "other_captions": ("b", "c"), "captions": "one", "id_column": "id"}
    first, second = (captions(DataConfig(uri=uri, shard_rows=rows, **asked)) for rows in (7, 60))
    assert first == second, "the caption hangs on the shard"
    assert all(first.count(w) > count / 6 for w in words), "the draw is not uniform"


def test_captions_that_are_no_text_are_refused_before_anything_starts(tmp_path):
    uri = write(tmp_path / "a.parquet", files.rows(2, n=[1, 2]), kinds={"n": pa.int64()})
    with pytest.raises(ValueError, match=r"data\.other_captions='n' holds int64; expected strings, or lists"):
        survey(DataConfig(uri=uri, other_captions=("n",)))


def test_a_random_crop_is_keyed_by_the_id_and_lies_inside(tmp_path):
    image = noise(9, 4)
    uri = write(tmp_path / "a.parquet", files.rows(30, image=[{"bytes": encoded(image), "path": ""}] * 30))
    data = DataConfig(uri=uri, id_column="id", crop="random")
    first, again = read(data), read(DataConfig(uri=uri, id_column="id", crop="random", shard_rows=7))
    pixels = [np.asarray(s.pixels) for s in first if isinstance(s, Sample)]
    assert all(np.array_equal(a, b.pixels) for a, b in zip(pixels, again, strict=True) if isinstance(b, Sample))
    assert len({p.tobytes() for p in pixels}) > 20, "every image is cut at one place"
    for place, left in ((0.0, 0), (1.0, 5), (0.4, 2)):
        cut = np.asarray(resize_crop(image, (4, 4), (0.5, place)))
        assert np.array_equal(cut, np.asarray(image)[:, left : left + 4]), f"{place} of what is left over"


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 8), (12, 4)])
def test_a_crop_is_the_resized_image_cut_in_the_middle(size):
    image = noise(64, 48).point(lambda level: 64 + level // 2)
    scale = max(size[1] / 64, size[0] / 48)
    whole = image.resize((round(64 * scale), round(48 * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size[1]) // 2, (whole.height - size[0]) // 2
    expected = whole.crop((left, top, left + size[1], top + size[0]))
    if (whole.width - size[1]) % 2 == (whole.height - size[0]) % 2 == 0 and whole.size == (64 * scale, 48 * scale):
        difference = np.asarray(resize_crop(image, size)).astype(int) - np.asarray(expected)
        assert abs(difference).max() <= LEVELS
    assert resize_crop(image, size).size == (size[1], size[0])


def test_every_image_goes_to_the_bucket_nearest_to_its_ratio(tmp_path):
    sizes = [(16, 16), (8, 24), (24, 8)]
    assert [nearest_bucket(noise(w, h), sizes) for w, h in ((40, 40), (60, 20), (20, 60), (44, 40))] == [
        (16, 16), (8, 24), (24, 8), (16, 16)
    ]  # fmt: skip
    images = [{"bytes": encoded(noise(w, h)), "path": ""} for w, h in ((40, 40), (60, 20), (20, 60))]
    data = DataConfig(uri=write(tmp_path / "a.parquet", files.rows(3, image=images)), buckets=tuple(sizes))
    shapes = [tuple(s.pixels.shape[1:]) for s in read(data) if isinstance(s, Sample) and s.pixels is not None]
    assert shapes == sizes


def test_an_image_smaller_than_the_crop_is_enlarged_or_a_reject(tmp_path):
    images = [{"bytes": encoded(noise(w, h)), "path": ""} for w, h in ((8, 8), (7, 20), (20, 7))]
    uri = write(tmp_path / "a.parquet", files.rows(3, image=images))
    assert all(isinstance(one, Sample) for one in read(DataConfig(uri=uri), 8))
    good, *small = read(DataConfig(uri=uri, enlarge=False), 8)
    assert isinstance(good, Sample)
    assert [one.reason for one in small if isinstance(one, Reject)] == ["too_small"] * 2
    assert isinstance(small[0], Reject)
    assert "7 x 20, smaller than the crop of 8 x 8; leave it out, or set data.enlarge=true" in small[0].message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crop": "centre"}, r"data\.crop='centre'; expected one of: center, random"),
        ({"captions": "any"}, r"data\.captions='any'; expected one of: first, first_line, one_line, join, one, class"),
        ({"buckets": ((512, 500),)}, r"data\.buckets: \[512, 500\] is no size"),
        ({"shard_rows": 0}, r"data\.shard_rows=0; expected at least 1"),
    ],
)
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(ValueError, match=says):
        DataConfig(**settings)
