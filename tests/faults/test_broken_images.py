"""Eight images of 64 that are not what they should be: four can be used and are used rightly, four are rejects."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.faults.sound import require_counts, require_listed
from tests.tolerances import STORED16

RIGHT_TOP = 6  # EXIF orientation: to be turned by 90 degrees clockwise
TAG = 0x0112


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(data: bytes) -> bytes:
    """Stored lying on its side, with the note that says so."""
    exif = Image.Exif()
    exif[TAG] = RIGHT_TOP
    return saved(opened(data).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def animated(data: bytes) -> bytes:
    first = opened(data)
    return saved(first, "PNG", save_all=True, append_images=[Image.new("RGB", first.size, "black")])


def transparent(data: bytes) -> bytes:
    image = opened(data).convert("RGBA")
    return saved(image, "PNG")


# Each keeps the picture, so its features must be those of the sound file.
USABLE = {
    3: turned,
    12: animated,
    27: transparent,
    44: lambda data: data + b"\x00" * 1000 + b"left over from another file",
}
REJECTED = {
    9: lambda data: data[: len(data) // 2],
    21: lambda data: b"",
    38: lambda data: b"<html>404 Not Found</html>",
    57: lambda data: None,
}


@pytest.fixture
def flawed(world, tmp_path) -> str:
    """The world's data with those images, in files of the same names."""
    folder, number = tmp_path / "flawed", 0
    folder.mkdir()
    for path in sorted((world.root / "shapes").iterdir()):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            if change := {**USABLE, **REJECTED}.get(number):
                changed = change(row["image"]["bytes"])
                row["image"] = None if changed is None else {"bytes": changed, "path": row["image"]["path"]}
            number += 1
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / path.name)
    assert number == 64
    return str(folder)


def test_what_can_be_used_is_used_rightly_and_the_rest_is_counted(world, undisturbed, flawed, tmp_path, capsys):
    store, share = tmp_path / "store", len(REJECTED) / 64
    found = world.audit(store, f"data.uri={flawed}", f"budget.rejects={share - 1 / 64}", model="pixels")
    assert found.code == 3
    assert f"{len(REJECTED)} of 64 samples were rejected for caption_trak (4 decode)" in capsys.readouterr().err
    assert len(list(store.glob("features/*/parts/*"))) == 57 // 8 + 1, "it stops at the reject that is one too many"

    found = world.audit(store, f"data.uri={flawed}", f"budget.rejects={share}", model="pixels")
    assert found.code == 0, "as many rejects as the budget allows are allowed"
    require_counts(found)
    require_listed(found)
    rejects = pq.read_table(found.folder / "rejects.parquet").to_pylist()
    assert [(r["sample_id"], r["reason"]) for r in rejects] == [(f"shapes-{i:06d}", "decode") for i in REJECTED]
    assert all(r["message"] and os.path.basename(r["source"]).startswith("train-") for r in rejects)

    ids, _, phi = found.features()
    sound_ids, _, sound = undisturbed.found.features()
    assert ids == [i for i in sound_ids if int(i.rpartition("-")[2]) not in REJECTED]
    kept = sound[[sound_ids.index(i) for i in ids]]
    off = np.linalg.norm(phi - kept, axis=1) / np.linalg.norm(kept, axis=1)
    worst = ids[int(off.argmax())]
    assert off.max() <= STORED16, f"{worst} is off by {off.max():.2g}: turned, blended or shifted wrongly"
    assert set(found.scores()) == set(ids)
