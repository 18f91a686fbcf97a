"""A second image of each sample, that a model is conditioned on: beside its image, cut where that is cut."""

import pyarrow as pa
import pytest
from PIL import Image

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.index import index_settings
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from concept_trak.store.part import Reject
from tests.data import files
from tests.data.files import IMAGE, encoded, noise, plan, write
from tests.data.test_webdataset import pairs, picture, put

COLUMN = "conditioning_image"


def read(data: DataConfig) -> list[Sample | Reject]:
    survey(data)
    return [row for shard in plan(data) for row in samples(shard, data, 4)]


def parquet(path, pictures, kind=IMAGE, group=1000):
    values = [{"bytes": p, "path": None} for p in pictures] if kind == IMAGE else pictures
    return write(path, files.rows(len(pictures), **{COLUMN: values}), group, {COLUMN: kind})


def greys(rows: list[Sample | Reject]) -> list[int | str]:
    return [r.reason if isinstance(r, Reject) else int(((r.conditioning[0, 0, 0] + 1) * 127.5).round()) for r in rows]


@pytest.mark.parametrize("kind", [IMAGE, pa.binary()])
@pytest.mark.parametrize("group", [1000, 3])
def test_each_row_of_parquet_has_its_own_and_one_without_is_a_reject(tmp_path, kind, group):
    pictures = [picture(n) if n != 4 else None for n in range(9)]
    uri = parquet(tmp_path / "a.parquet", pictures, kind, group)
    rows = read(DataConfig(uri=uri, id_column="id", conditioning_image_column=COLUMN, shard_rows=2))
    assert greys(rows) == [0, 1, 2, 3, "no_conditioning_image", 5, 6, 7, 8]
    colours = [int(((r.pixels[0, 0, 0] + 1) * 127.5).round()) for r in rows if isinstance(r, Sample)]
    assert colours == [0, 1, 2, 3, 5, 6, 7, 8], "images are of other rows"


def test_a_picture_that_cannot_be_read_is_a_reject(tmp_path):
    rows = read(
        DataConfig(uri=parquet(tmp_path / "a.parquet", [b"none", picture(7)]), conditioning_image_column=COLUMN)
    )
    assert greys(rows) == ["decode", 7]


def test_members_of_a_tar_are_named_by_their_ending_and_not_left_out(tmp_path):
    members = sorted([*pairs(5), *((f"a/{n:04d}.conditioning.png", picture(100 + n)) for n in (0, 1, 2, 4))])
    put(tmp_path / "x.tar", members)
    data = DataConfig(
        uri=str(tmp_path), caption_column="txt", conditioning_image_column="conditioning.png", shard_rows=2
    )
    assert greys(read(data)) == [100, 101, 102, "no_conditioning_image", 104]
    assert not [left for left in survey(data).left_out if "conditioning" in left.reason]
    without = DataConfig(uri=str(tmp_path), caption_column="txt")
    assert all(isinstance(row, Sample) and row.conditioning is None for row in read(without))
    assert [left.count for left in survey(without).left_out if "conditioning.png" in left.reason] == [4]


def test_a_random_crop_cuts_both_images_at_one_position_also_if_one_is_larger(tmp_path):
    image = noise(9, 4)
    same = [{"bytes": encoded(image), "path": None}] * 20
    twice = [{"bytes": encoded(image.resize((18, 8), Image.Resampling.NEAREST)), "path": None}] * 20
    for pictures, difference in ((same, 0.0), (twice, 0.15)):  # a crop of another position: 0.6
        values = files.rows(20, image=same, **{COLUMN: pictures})
        uri = write(tmp_path / "a.parquet", values, kinds={COLUMN: IMAGE})
        rows = read(DataConfig(uri=uri, id_column="id", crop="random", conditioning_image_column=COLUMN))
        for row in rows:
            assert (row.conditioning - row.pixels).abs().mean() <= difference
        assert len({row.pixels.numpy().tobytes() for row in rows}) > 10


def test_with_buckets_both_have_the_size_of_the_image(tmp_path):
    wide = {"bytes": encoded(noise(32, 16)), "path": None}
    tall = {"bytes": encoded(noise(16, 32)), "path": None}
    uri = write(tmp_path / "a.parquet", files.rows(1, image=[wide], **{COLUMN: [tall]}), kinds={COLUMN: IMAGE})
    (row,) = read(DataConfig(uri=uri, buckets=((8, 16), (16, 8)), conditioning_image_column=COLUMN))
    assert row.pixels.shape == row.conditioning.shape == (3, 8, 16)


def test_what_has_no_such_column_is_refused_before_anything_starts(tmp_path):
    uri = write(tmp_path / "a.parquet", files.rows(2))
    with pytest.raises(UserError, match=r"data\.conditioning_image_column='edges' is not a column of "):
        survey(DataConfig(uri=uri, conditioning_image_column="edges"))
    with pytest.raises(UserError, match=r"conditioning_image_column='caption' is string; expected struct<bytes"):
        survey(DataConfig(uri=uri, caption_column="id", conditioning_image_column="caption"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.png").write_bytes(picture(0))
    with pytest.raises(UserError, match=r"is read from Parquet and from tars, not from folders of images; write the"):
        survey(DataConfig(uri=str(tmp_path / "folder"), caption_column="label", conditioning_image_column=COLUMN))
    latent = [[[[0.0]]]]
    values = {"latents": latent, "caption": ["a"], "condition.text": [[0.0]], COLUMN: [picture(0)]}
    kinds = {"latents": pa.list_(pa.list_(pa.list_(pa.float32()))), "condition.text": pa.list_(pa.float32()),
             COLUMN: pa.binary()}  # fmt: skip
    uri = write(tmp_path / "latents.parquet", values, kinds=kinds)
    with pytest.raises(UserError, match=r"holds latents; leave it empty, and write the encoded image as condition"):
        survey(DataConfig(uri=uri, image_column="latents", conditioning_image_column=COLUMN))


def test_an_index_without_them_keeps_its_name():
    assert COLUMN not in "".join(index_settings(DataConfig(uri="a")))
    assert index_settings(DataConfig(uri="a", conditioning_image_column="b"))["conditioning_image_column"] == "b"
