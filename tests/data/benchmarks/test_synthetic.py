"""The benchmark's files: reproducible to the byte, readable by anyone."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from concept_trak.data.benchmarks import drawing, synthetic
from concept_trak.data.benchmarks.two_factors import pair_caption


def rows_of(paths):
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def shape_pixels(image):
    """How many pixels are outline (dark) or fill (saturated), the background being light and pale."""
    channels = np.asarray(image).astype(int)
    return int(((channels.max(2) - channels.min(2) > 60) | (channels.max(2) < 100)).sum())


def test_same_arguments_give_the_same_bytes(tmp_path):
    one = synthetic.write_synthetic(tmp_path / "one", rows=30, seed=3, files=3)
    two = synthetic.write_synthetic(tmp_path / "two", rows=30, seed=3, files=3)
    assert [p.name for p in one] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two], "something but the seed enters the files"


def test_an_image_does_not_depend_on_how_many_others_are_drawn_nor_on_the_files(tmp_path):
    whole = rows_of(synthetic.write_synthetic(tmp_path / "whole", rows=40, seed=3, files=4))
    tail = rows_of(synthetic.write_synthetic(tmp_path / "tail", rows=15, seed=3, files=1, first=25))
    assert [row["id"] for row in whole] == [f"shapes-{index:06d}" for index in range(40)]
    assert whole[25:] == tail, "an image depends on its place in a file or on a generator shared between images"


def test_another_seed_gives_other_images(tmp_path):
    images = [rows_of(synthetic.write_synthetic(tmp_path / str(seed), rows=5, seed=seed, files=1)) for seed in (0, 1)]
    assert all(a["image"]["bytes"] != b["image"]["bytes"] for a, b in zip(*images, strict=True))


def test_files_are_what_hugging_face_datasets_writes_and_pillow_opens_their_images(tmp_path):
    (path,) = synthetic.write_synthetic(tmp_path, rows=4, seed=0, files=1, resolution=48)
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(table.column_names) == {"id", "image", "caption", "shape", "colour"}
    assert features["image"] == {"_type": "Image"}
    for index, row in enumerate(table.to_pylist()):
        drawn = synthetic.draw_labelled(0, index, resolution=48)
        opened = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (opened.size, opened.mode) == ((48, 48), "RGB")
        assert np.array_equal(np.asarray(opened), np.asarray(drawn.image)), "PNG must lose nothing"
        assert (row["caption"], row["shape"], row["colour"]) == (drawn.caption, *drawn.image_pair)


@pytest.mark.parametrize(
    ("shape", "colour", "text"),
    [("triangle", "red", "a red triangle"), ("circle", None, "a circle"), (None, "blue", "blue"), (None, None, "")],
)
def test_none_drops_a_factor_from_the_caption(shape, colour, text):
    assert pair_caption(shape, colour) == text


@pytest.mark.parametrize("seed", range(16))
def test_shapes_of_one_size_have_equal_areas_wherever_they_stand(seed):
    area = {s: shape_pixels(drawing.draw_shape(s, "red", np.random.default_rng(seed), 256)) for s in drawing.SHAPES}
    for shape in drawing.SHAPES:
        assert area[shape] == pytest.approx(area["circle"], rel=0.03), f"the {shape} is cut off or too large: {area}"


def test_an_equal_file_is_left_untouched_and_another_is_not_overwritten(tmp_path):
    (path,) = synthetic.write_synthetic(tmp_path, rows=3, seed=0, files=1)
    before = path.stat().st_mtime_ns
    synthetic.write_synthetic(tmp_path, rows=3, seed=0, files=1)
    assert path.stat().st_mtime_ns == before, "the file's version changed, and every feature of it would be recomputed"
    with pytest.raises(ValueError, match="exists with other content"):
        synthetic.write_synthetic(tmp_path, rows=3, seed=1, files=1)


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 <= files <= rows"):
        synthetic.write_synthetic(tmp_path, rows=3, seed=0, files=4)
