"""Where shards share pages, a line says how often images are read: before a run, and in its dry run."""

import json

from concept_trak.data import image_reads

NOTE = "pages of 16 images, which shards of 8 rows read whole: every image is read 2 times"
REMEDY = "Write the files with row_group_size=8, or use a new store with data.shard_rows=16"


def test_a_run_says_how_often_images_are_read(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_reads, "WORTH_BYTES", 0)
    assert world.audit(tmp_path, "preflight=true", data="few").code == 0
    dry = capsys.readouterr().out
    assert f"data       {NOTE}" in dry
    assert REMEDY in dry
    found = world.audit(tmp_path, data="few")
    said = capsys.readouterr().out
    assert f"           {NOTE}" in said
    assert REMEDY in said
    assert json.loads((found.folder / "metrics.json").read_text())["data"]["image_reads"] == 2


def test_nothing_is_said_of_a_few_bytes(world, tmp_path, capsys):
    found = world.audit(tmp_path, "preflight=true", data="few")
    assert found.code == 0
    assert "pages of" not in capsys.readouterr().out
