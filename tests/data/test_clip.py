"""Clips: animated files as the frames that the settings ask for."""

import numpy as np
import pytest
import torch
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data import latents
from concept_trak.data.clip import TooFewFrames, decode_clip
from concept_trak.data.image import resize_crop, to_tensor
from concept_trak.data.sample import Sample, _crop_position, samples
from concept_trak.data.survey import survey
from tests.data import test_latents
from tests.data.files import encoded, noise, plan

FRAMES = [noise(9, 6, seed).point(lambda level: level // 64 * 85) for seed in range(7)]  # few colours, for GIF
FORMATS = {"gif": {"optimize": False}, "webp": {"lossless": True}, "png": {}}


def animation(ending: str, frames: list[Image.Image] = FRAMES, **more) -> bytes:
    options = {"save_all": True, "append_images": frames[1:], "duration": 40}
    return encoded(frames[0], ending.upper(), **options | FORMATS[ending] | more)


def numbers(clip) -> list[int]:
    """Which of `FRAMES` each frame is."""
    pixels = [np.asarray(frame).tobytes() for frame in FRAMES]
    return [pixels.index(np.asarray(frame).tobytes()) for frame in clip]


@pytest.mark.parametrize("ending", FORMATS)
def test_the_frames_are_the_first_ones_or_are_spread_over_the_whole(ending):
    data = animation(ending)
    assert numbers(decode_clip(data, 5)) == [0, 1, 2, 3, 4]
    assert numbers(decode_clip(data, 4, spread=True)) == [0, 2, 4, 6]
    assert numbers(decode_clip(data, 5, spread=True)) == [0, 1, 3, 4, 6]
    assert numbers(decode_clip(data, 7)) == numbers(decode_clip(data, 7, spread=True)) == list(range(7))
    assert numbers(decode_clip(data, 1, spread=True)) == [0]
    with pytest.raises(TooFewFrames, match=r"it has 7 frames, and a clip of the model has 9"):
        list(decode_clip(data, 9))


def test_the_picture_that_stands_for_an_animation_is_no_frame_of_it():
    data = animation("png", default_image=True)
    assert numbers(decode_clip(data, 5)) == [1, 2, 3, 4, 5]
    with pytest.raises(TooFewFrames, match="it has 6 frames"):
        list(decode_clip(data, 7))


def read(folder, **settings) -> list:
    data = DataConfig(uri=str(folder), caption_column="label", **settings)
    survey(data)
    return [row for shard in plan(data) for row in samples(shard, data, 4)]


def test_files_that_make_no_clip_are_rejects_that_say_why(tmp_path):
    whole = animation("webp")
    files = {"a.webp": whole, "b.webp": animation("webp", FRAMES[:3]), "c.png": encoded(FRAMES[0])}
    files |= {"d.webp": whole[:-99], "e.gif": animation("gif")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = read(tmp_path, frames=5)
    assert [getattr(row, "reason", "") for row in rows] == ["", "too_few_frames", "too_few_frames", "decode", ""]
    assert rows[1].message == "it has 3 frames, and a clip of the model has 5; leave it out, or lower data.frames"
    assert rows[2].message.startswith("it has 1 frame, and")
    assert torch.equal(rows[0].pixels, rows[4].pixels)
    assert [type(row) for row in read(tmp_path)] == [Sample] * 3 + [type(rows[3])] + [Sample], "without data.frames"


def test_each_frame_is_cut_as_an_image_is_and_all_at_one_place(tmp_path):
    """A page shows the first."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.webp").write_bytes(animation("webp"))
    (tmp_path / "stills").mkdir()
    for number in range(5):
        (tmp_path / f"stills/{number}.png").write_bytes(encoded(FRAMES[number]))
    (clip,) = read(tmp_path / "clips", frames=5)
    stills = read(tmp_path / "stills")
    assert torch.equal(clip.pixels, torch.stack([still.pixels for still in stills], 1))
    assert torch.equal(clip.picture, stills[0].picture)
    assert torch.equal(stills[0].picture, stills[0].pixels)
    (elsewhere,) = read(tmp_path / "clips", frames=5, crop="random")
    assert elsewhere.pixels.shape == (3, 5, 4, 4)
    place = _crop_position(elsewhere.id, DataConfig(crop="random"))
    cut = [to_tensor(resize_crop(frame, (4, 4), place)) for frame in FRAMES[:5]]
    assert place[1] != 0.5
    assert torch.equal(elsewhere.pixels, torch.stack(cut, 1))


def test_latents_of_clips_are_the_same_numbers_in_safetensors_and_parquet(tmp_path):
    x = torch.randn(5, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    latents.write_latents(tmp_path / "a.safetensors", x, test_latents.CONDITION, test_latents.SAID)
    stored = test_latents.read(DataConfig(uri=str(tmp_path / "a.safetensors"), **test_latents.COLUMNS))
    columns = test_latents.read(test_latents.parquet(tmp_path / "a.parquet", x.tolist()))
    assert torch.equal(torch.stack([sample.content for sample in stored]), x)
    assert torch.equal(torch.stack([sample.content for sample in columns]), x)
