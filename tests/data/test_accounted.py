"""Nothing is lost: samples + rejects + what is left out = what lies there, over generated trees of every format."""

import io
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from concept_trak import UserError
from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data import latents
from concept_trak.data.inventory import Survey
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from concept_trak.store.part import Reject
from tests.data.files import IMAGE, encoded

GOOD = encoded(Image.new("RGB", (4, 4), (9, 9, 9)))
JPEG = encoded(Image.new("RGB", (4, 4)), "JPEG")
HIDDEN = (".", "@eaDir")
FOLDERS = st.sampled_from(["", "a/", "a/b c/", "_x/", ".h/", "@eaDir/", "é/", "a/.cache/b/"])
STEMS = st.sampled_from(["1", "2", "_3", "x.y", "ü ~", "#%", ".4", "new\nline", "CON", "-"])


def read(data: DataConfig) -> tuple[Survey, list[Sample | Reject]]:
    surveyed = survey(data)
    plan = shards(surveyed.sources, data.shard_rows)
    return surveyed, [row for shard in plan for row in samples(shard, data, 4)]


def left_out(surveyed: Survey, kind: str) -> int:
    return sum(entry.count for entry in surveyed.left_out if entry.kind == kind)


def hidden(relative: str, *prefixes: str) -> bool:
    return any(part.startswith((*HIDDEN, *prefixes)) for part in relative.split("/"))


def usable(rows: list[Sample | Reject]) -> int:
    return sum(isinstance(row, Sample) for row in rows)


# Folders of images


@st.composite
def image_trees(draw: Any) -> dict[str, str]:
    """What lies at each path: the names say what the files hold."""
    kinds = st.sampled_from([".png", ".JFIF", ".broken.jpg", ".txt", ".md", "", ".dead link", ".pipe", ".txt"])
    paths = draw(st.lists(st.tuples(FOLDERS, STEMS, kinds), max_size=14, unique=True))
    return {f"{folder}{stem}{kind}": kind for folder, stem, kind in paths}


def put_images(root: Path, tree: dict[str, str]) -> None:
    for name, kind in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == ".dead link":
            path.symlink_to("nothing")
        elif kind == ".pipe":
            os.mkfifo(path)
        else:
            content = {".png": GOOD, ".JFIF": JPEG, ".txt": "\ufeffa caption\r\n".encode()}
            path.write_bytes(content.get(kind, b"no picture"))


def check_images(root: Path, tree: dict[str, str]) -> None:
    data = DataConfig(str(root), caption_column="label", shard_rows=3)
    seen = {name for name in tree if not hidden(name)}
    images = {n for n in seen if n.lower().endswith((".png", ".jfif", ".jpg"))}
    texts = {n for n in seen if n.endswith(".txt") and any(os.path.splitext(i)[0] == n[:-4] for i in images)}
    if not images:
        with pytest.raises(UserError, match=r"holds no \.jpg|does not exist"):
            survey(data)
        return
    surveyed, rows = read(data)
    assert len(rows) == len(images)
    assert len(rows) + len(texts) + left_out(surveyed, "file") == len(tree), surveyed.left_out
    assert usable(rows) == sum(not n.endswith(".broken.jpg") for n in images)
    assert {row.id for row in rows if isinstance(row, Sample)} <= images


# Parquet


@st.composite
def parquet_trees(draw: Any) -> dict[str, list[str]]:
    """The rows of each file by what is wrong with them; other files have none."""
    rows = st.lists(st.sampled_from(["good", "good", "no image", "broken", "no caption", "long", "path"]), max_size=5)
    endings = st.sampled_from([".parquet", ".PARQUET", ".parquet", ".crc", ".json"])
    paths = draw(st.lists(st.tuples(FOLDERS, STEMS, endings), max_size=5, unique=True))
    return {f"{f}{stem}{ending}": draw(rows) for f, stem, ending in paths}


def put_parquet(root: Path, tree: dict[str, list[str]]) -> None:
    for name, rows in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images = {"no image": None, "broken": {"bytes": b"x", "path": "x"}, "path": {"bytes": None, "path": "a.png"}}
        captions = {"no caption": None, "long": "x" * 20_000}
        columns = {
            "image": pa.array([images.get(row, {"bytes": GOOD, "path": "a.png"}) for row in rows], IMAGE),
            "caption": pa.array([captions.get(row, "a caption") for row in rows], pa.string_view()),
            "url": pa.array(["x"] * len(rows), pa.string()),
        }
        if name.lower().endswith(".parquet"):
            pq.write_table(pa.table(columns), path, row_group_size=2)
        else:
            path.write_bytes(b"notes")


def check_parquet(root: Path, tree: dict[str, list[str]]) -> None:
    data = DataConfig(str(root), shard_rows=2)
    files = {n: rows for n, rows in tree.items() if n.lower().endswith(".parquet") and not hidden(n, "_")}
    paths_only = [n for n, rows in files.items() if rows and not set(rows) - {"path", "no image"} and "path" in rows]
    if not any(files.values()):
        with pytest.raises(UserError, match=r"holds no|no rows|does not exist"):
            survey(data)
        return
    if paths_only:
        with pytest.raises(UserError, match=r"holds paths only"):
            survey(data)
        return
    surveyed, rows = read(data)
    assert len(rows) == sum(map(len, files.values()))
    assert len(surveyed.sources) + left_out(surveyed, "file") == len(tree), surveyed.left_out
    assert usable(rows) == sum(rows.count("good") for rows in files.values())
    assert left_out(surveyed, "column") == 1, "the column `url` is in no setting"


# Tars


@st.composite
def tar_trees(draw: Any) -> dict[str, list[list[tuple[str, str]]]]:
    """By file the archives that it is concatenated from, and the members of each, which say what they hold."""
    sets = st.sampled_from([
        ("png", "txt"), ("png", "txt", "json"), ("jfif", "txt"), ("txt",), ("png",), ("broken.jpg", "txt"),
        ("jpg", "txt"), ("png", "webp", "txt"), ("png", "txt", "deep.json"), ("png", "txt", "json", "npy"),
    ])  # fmt: skip
    names = draw(
        st.lists(st.sampled_from(["0.tar", "a/1.TAR", ".2.tar", "_3.tar", "4.tar.gz"]), max_size=3, unique=True)
    )
    tree: dict[str, list[list[tuple[str, str]]]] = {}
    for name in names:
        archives = draw(
            st.lists(st.lists(st.tuples(sets, st.booleans()), min_size=1, max_size=3), min_size=1, max_size=3)
        )
        tree[name] = [
            [(f"f/{i}-{k}", kind) for k, (kinds, apple) in enumerate(archive) for kind in (*kinds, *(["._"] * apple))]
            for i, archive in enumerate(archives)
        ]
    return tree


def put_tars(root: Path, tree: dict[str, list[list[tuple[str, str]]]]) -> None:
    content = {"png": GOOD, "txt": b"a caption", "json": json.dumps({"n": 1}).encode(), "jfif": JPEG, "webp": GOOD}
    content |= {"jpg": b"broken", "broken.jpg": b"", "deep.json": b"[" * 100_000}
    for name, archives in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        for members in archives:
            with tarfile.open(fileobj=out, mode="w") as tar:
                for key, kind in members:
                    info = tarfile.TarInfo(f"f/._{key[2:]}.png" if kind == "._" else f"{key}.{kind}")
                    info.size = len(content.get(kind, b"more"))
                    tar.addfile(info, io.BytesIO(content.get(kind, b"more")))
        (root / name).write_bytes(out.getvalue())


def check_tars(root: Path, tree: dict[str, list[list[tuple[str, str]]]]) -> None:
    data = DataConfig(str(root), caption_column="txt", shard_rows=2)
    files = {n: [m for archive in archives for m in archive] for n, archives in tree.items()
             if n.lower().endswith(".tar") and not hidden(n)}  # fmt: skip
    by_key = [[[kind for key, kind in members if key == k and kind != "._"] for k in {key for key, _ in members}]
              for members in files.values()]  # fmt: skip
    sets = [kinds for keys in by_key for kinds in keys]
    dotted = any(2 * sum("broken.jpg" in kinds for kinds in keys) > len(keys) for keys in by_key)
    captioned = all(any("txt" in kinds for kinds in keys) for keys in by_key)
    pictured = all({kind for kinds in keys for kind in kinds} & {"png", "jfif", "jpg"} for keys in by_key)
    if not files or dotted or not captioned or not pictured:
        with pytest.raises(UserError, match=r"holds no|does not exist|first dot|in none of the first samples"):
            survey(data)
        return
    surveyed, rows = read(data)
    assert len(rows) == len(sets)
    assert len(surveyed.sources) + left_out(surveyed, "file") == len(tree), surveyed.left_out
    members = Counter(kind for members in files.values() for _, kind in members)
    of_samples = sum(members[kind] for kind in ("png", "jpg", "jfif", "webp", "txt", "json"))
    assert left_out(surveyed, "member") == members.total() - of_samples, surveyed.left_out
    good = [
        kinds for kinds in sets if "txt" in kinds and len({"png", "jfif"} & set(kinds)) == 1 and "webp" not in kinds
    ]
    assert usable(rows) == len(good)


# Latents


@st.composite
def latent_trees(draw: Any) -> dict[str, tuple[list[bool], bool]]:
    """By file which of its rows are finite, and whether it has a tensor of something else."""
    names = st.tuples(FOLDERS, STEMS)
    files = draw(st.lists(st.tuples(names, st.lists(st.booleans(), min_size=1, max_size=4), st.booleans()), max_size=4))
    return {f"{folder}{stem}.safetensors": (rows, other) for (folder, stem), rows, other in files}


def put_latents(root: Path, tree: dict[str, tuple[list[bool], bool]]) -> None:
    for name, (rows, other) in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        x = torch.tensor([0.0 if finite else float("nan") for finite in rows])[:, None, None, None].expand(-1, 2, 3, 3)
        condition = {"text": torch.zeros(len(rows), 5)}
        latents.write_latents(root / name, x, condition, {"caption": ["a"] * len(rows)})
        if other:
            from safetensors.torch import save_file

            tensors = {"latents": x.contiguous(), "condition.text": condition["text"], "aesthetic": torch.zeros(7)}
            save_file(tensors, root / name, {"columns": json.dumps({"caption": ["a"] * len(rows)})})


def check_latents(root: Path, tree: dict[str, tuple[list[bool], bool]]) -> None:
    data = DataConfig(str(root), shard_rows=3)
    files = {n: value for n, value in tree.items() if not hidden(n)}
    if not files:
        with pytest.raises(UserError, match=r"holds no|does not exist"):
            survey(data)
        return
    surveyed, rows = read(data)
    assert len(surveyed.sources) + left_out(surveyed, "file") == len(tree)
    assert len(rows) == sum(len(finite) for finite, _ in files.values())
    assert usable(rows) == sum(sum(finite) for finite, _ in files.values())
    assert left_out(surveyed, "tensor") == sum(other for _, other in files.values())


FORMATS: dict[str, tuple[Any, Callable[..., None], Callable[..., None]]] = {
    "folder": (image_trees(), put_images, check_images),
    "parquet": (parquet_trees(), put_parquet, check_parquet),
    "webdataset": (tar_trees(), put_tars, check_tars),
    "latents": (latent_trees(), put_latents, check_latents),
}


def run(kind: str, examples: int) -> None:
    trees, put, check = FORMATS[kind]

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True,
              suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])  # fmt: skip
    @given(trees, st.data())
    def everything_is_accounted_for(tree: dict[str, Any], data: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            put(root, tree)
            deleted = data.draw(
                st.lists(st.sampled_from(sorted(tree)), unique=True, max_size=2) if tree else st.just([])
            )
            for name in deleted:
                (root / name).unlink()
            check(root, {name: value for name, value in tree.items() if name not in deleted})

    everything_is_accounted_for()


@pytest.mark.parametrize("kind", FORMATS)
def test_everything_is_a_sample_a_reject_or_left_out(kind):
    run(kind, 125)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", FORMATS)
def test_everything_is_accounted_for_over_many_trees(kind):
    run(kind, 3000)
