"""What people bring, one function for each row of docs/inputs.md: it makes the input and returns how it is read."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data import latents
from tests.data import files
from tests.data.files import IMAGE, encoded, write
from tests.data.heic import HEIC

RED = Image.new("RGB", (16, 16), (255, 0, 0))
PNG = encoded(RED)
CASES: dict[str, Callable[[Path], DataConfig]] = {}


def case(title: str) -> Callable[[Callable[[Path], DataConfig]], Callable[[Path], DataConfig]]:
    def keep(make: Callable[[Path], DataConfig]) -> Callable[[Path], DataConfig]:
        assert title not in CASES, f"{title} is there twice"
        CASES[title] = make
        return make

    return keep


def put(root: Path, **contents: bytes | str) -> None:
    """A file for each name, in which `__` stands for a dot and `___` for a slash."""
    for name, content in contents.items():
        put_file(root / name.replace("___", "/").replace("__", "."), content)


def put_file(path: Path, content: bytes | str = PNG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def captioned(root: Path, *names: str, image: bytes = PNG) -> DataConfig:
    """Pictures, each with a text of its name."""
    for name in names:
        put_file(root / name, image)
        put_file((root / name).with_suffix(".txt"), f"a caption of {name}")
    return DataConfig(str(root), caption_column="txt")


def labelled(root: Path, *names: str, image: bytes = PNG, **settings: Any) -> DataConfig:
    """Pictures whose folder's name is their caption."""
    for name in names:
        put_file(root / name, image)
    return DataConfig(str(root), caption_column="label", **settings)


def table(root: Path, name: str = "a.parquet", **columns: Any) -> DataConfig:
    """One Parquet file."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / name)
    return DataConfig(str(root))


def structs(count: int = 2, **changed: Any) -> pa.Array:
    return pa.array([{"bytes": PNG, "path": "a.png"} | changed] * count, IMAGE)


def packed(*members: tuple[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pair(key: str) -> tuple[tuple[str, bytes], tuple[str, str]]:
    return (f"{key}.png", PNG), (f"{key}.txt", f"a caption of {key}")


def tar(root: Path, *members: tuple[str, bytes | str], name: str = "a.tar", **settings: Any) -> DataConfig:
    put_file(root / name, packed(*members))
    return DataConfig(str(root), **{"caption_column": "txt", **settings})


# Files


@case("a picture and a text with its name")
def _(root: Path) -> DataConfig:
    return captioned(root, "a.png")


@case("names that begin with an underscore, among pictures")
def _(root: Path) -> DataConfig:
    return captioned(root, "_MG_0001.JPG", "IMG_0002.JPG")


@case("names that begin with a dot; `@eaDir`, `__MACOSX` and `.thumbnails` folders")
def _(root: Path) -> DataConfig:
    return labelled(root, "a.png", ".b.png", "@eaDir/c.png", "__MACOSX/x/d.png", ".thumbnails/e.png", "x/.cache/f.png")


@case("names that begin with an underscore or a dot, among Parquet files")
def _(root: Path) -> DataConfig:
    for name in ("a", "_temporary/a", "_metadata", ".ipynb_checkpoints/a"):
        write(root / f"{name}.parquet", files.rows(2))
    return DataConfig(str(root), label_columns=("id",))


@case("files with other endings")
def _(root: Path) -> DataConfig:
    put(root, README__md="read me", b__psd=b"8BPS")
    return labelled(root, "a.png")


@case("a text without a picture")
def _(root: Path) -> DataConfig:
    put(root, b__txt="of nothing")
    return labelled(root, "a.png")


@case("a link to a picture, and a broken link")
def _(root: Path) -> DataConfig:
    (root / "b.png").symlink_to("a.png")
    (root / "c.png").symlink_to("gone.png")
    return labelled(root, "a.png")


@case("a link to a folder outside `data.uri`")
def _(root: Path) -> DataConfig:
    put_file(root / "elsewhere/b.png")
    (root / "data").mkdir()
    (root / "data/more").symlink_to("../elsewhere")
    return labelled(root / "data", "a.png")


@case("two links to folders inside `data.uri`")
def _(root: Path) -> DataConfig:
    config = labelled(root, "z/a.png")
    (root / "a").symlink_to("z")
    (root / "z/up").symlink_to("..")
    return config


@case("a pipe among pictures")
def _(root: Path) -> DataConfig:
    os.mkfifo(root / "pipe.png")
    return labelled(root, "a.png")


@case("`data.uri` is a pipe")
def _(root: Path) -> DataConfig:
    os.mkfifo(root / "pipe.parquet")
    return DataConfig(str(root / "pipe.parquet"))


@case("`data.uri` is a broken link")
def _(root: Path) -> DataConfig:
    (root / "a.parquet").symlink_to("gone.parquet")
    return DataConfig(str(root / "a.parquet"))


@case("compressed tars among tars")
def _(root: Path) -> DataConfig:
    put(root, b__tar__gz=b"\x1f\x8b")
    return tar(root, *pair("a"))


@case("only compressed tars")
def _(root: Path) -> DataConfig:
    put(root, b__tar__gz=b"\x1f\x8b")
    return DataConfig(str(root))


@case("a gzip file called `.tar`")
def _(root: Path) -> DataConfig:
    put_file(root / "a.tar", gzip.compress(packed(*pair("a"))))
    return DataConfig(str(root), caption_column="txt")


@case("Arrow files of `save_to_disk`")
def _(root: Path) -> DataConfig:
    put(root, data__arrow=b"ARROW1", state__json="{}")
    return DataConfig(str(root))


def splits(root: Path, split: str = "") -> DataConfig:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "data/validation-0"):
        write(root / f"{name}.parquet", files.rows(2))
    return DataConfig(str(root), split=split, label_columns=("id",))


@case("`train`, `test` and `validation` files side by side")
def _(root: Path) -> DataConfig:
    return splits(root)


@case("the same with `data.split=train`")
def _(root: Path) -> DataConfig:
    return splits(root, "train")


@case("the same with `data.split=all`")
def _(root: Path) -> DataConfig:
    return splits(root, "all")


@case("the same with `data.split=held_out`")
def _(root: Path) -> DataConfig:
    return splits(root, "held_out")


@case("folders `train2017/` and `val2017/` of pictures")
def _(root: Path) -> DataConfig:
    return labelled(root, "train2017/test.png", "val2017/a.png")


@case("the same with `data.split=val`")
def _(root: Path) -> DataConfig:
    return labelled(root, "train2017/test.png", "val2017/a.png", split="val")


@case("a test file and files without a split")
def _(root: Path) -> DataConfig:
    for name in ("part-0", "test-0"):
        write(root / f"{name}.parquet", files.rows(2))
    return DataConfig(str(root))


@case("`data.files=part-*.parquet`")
def _(root: Path) -> DataConfig:
    for name in ("x/part-0", "test-0"):
        write(root / f"{name}.parquet", files.rows(2))
    return DataConfig(str(root), files="part-*.parquet", label_columns=("id",))


@case("`data.files=b/**/*.png`")
def _(root: Path) -> DataConfig:
    return labelled(root, "a/1.png", "b/c/2.png", files="b/**/*.png")


@case("`data.files` that no file matches")
def _(root: Path) -> DataConfig:
    return labelled(root, "a.png", files="*.parquet")


@case("a pattern in `data.uri`")
def _(root: Path) -> DataConfig:
    return DataConfig(f"{root}/*.parquet")


@case("files of two formats")
def _(root: Path) -> DataConfig:
    write(root / "a.parquet", files.rows(2))
    return labelled(root, "a.png")


@case("a picture whose name is not UTF-8")
def _(root: Path) -> DataConfig:
    put_file(Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")))
    return labelled(root, "a.png")


@case("storage without etag and time")
def _(root: Path) -> DataConfig:
    return DataConfig("timeless://data/a.parquet")


@case("an unknown protocol")
def _(root: Path) -> DataConfig:
    return DataConfig("nosuch://x")


@case("a chain of file systems, as `zip://a.png::b.zip` or `simplecache::s3://bucket/train`")
def _(root: Path) -> DataConfig:
    with ZipFile(root / "b.zip", "w") as archive:
        archive.writestr("a.png", PNG)
    return DataConfig(f"zip://a.png::{root}/b.zip")


@case("no files")
def _(root: Path) -> DataConfig:
    return DataConfig(str(root))


# Pictures


@case("jpg, jpeg, jpe, jfif, png, webp, gif, bmp, tif, avif, jp2, ppm, tga, qoi, heic and jxl files")
def _(root: Path) -> DataConfig:
    forms = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    for ending in (*forms, "png", "webp", "gif", "bmp", "avif", "ppm", "tga", "qoi", "jxl"):
        put_file(root / f"{ending}.{ending}", encoded(RED, forms.get(ending, ending.upper())))
    return labelled(root, "heic.heic", image=HEIC)


@case("JPEG bytes in a file called `.png`")
def _(root: Path) -> DataConfig:
    return labelled(root, "a.png", image=encoded(RED, "JPEG"))


@case("EPS, SVG, PDF or PSD bytes in a file called `.jpg`")
def _(root: Path) -> DataConfig:
    put(root, a__jpg=encoded(RED, "EPS"), b__jpg="<svg/>", c__jpg=encoded(RED, "PDF"), d__jpg=b"8BPS" + bytes(99))
    return DataConfig(str(root), caption_column="label")


@case("an empty file, a cut file, a web page")
def _(root: Path) -> DataConfig:
    put(root, a__jpg="", b__jpg=encoded(files.noise(40, 40), "JPEG")[:-400], c__jpg="<!DOCTYPE html><p>404</p>")
    return DataConfig(str(root), caption_column="label")


@case("a pointer of Git LFS")
def _(root: Path) -> DataConfig:
    return labelled(root, "a.png", image=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@case("CMYK, 16 bits, one bit, grey, palette and grey with alpha")
def _(root: Path) -> DataConfig:
    for mode in ("1", "L", "P", "LA"):
        put_file(root / f"{mode}.png", encoded(Image.new(mode, (16, 16))))
    put_file(root / "I16.png", encoded(Image.fromarray(np.full((16, 16), 300, np.uint16))))
    return labelled(root, "CMYK.jpg", image=encoded(Image.new("CMYK", (16, 16)), "JPEG"))


@case("floating-point and 32-bit TIFF")
def _(root: Path) -> DataConfig:
    put_file(root / "I.tif", encoded(Image.fromarray(np.full((16, 16), 200, np.int32)), "TIFF"))
    return labelled(root, "F.tif", image=encoded(Image.fromarray(np.full((16, 16), 0.5, np.float32)), "TIFF"))


def animation() -> bytes:
    blue = Image.new("RGB", (16, 16), (0, 0, 255))
    return encoded(RED, "GIF", save_all=True, append_images=[blue])


@case("an animation (its first frame)")
def _(root: Path) -> DataConfig:
    return labelled(root, "a.gif", image=animation())


@case("an animation of two frames, with `data.frames=2` (a clip)")
def _(root: Path) -> DataConfig:
    return labelled(root, "a.gif", image=animation(), frames=2)


@case("the same with `data.frames=5`, and a still picture")
def _(root: Path) -> DataConfig:
    put_file(root / "b.png", encoded(RED))
    return labelled(root, "a.gif", image=animation(), frames=5)


@case("more pixels than `data.most_pixels`")
def _(root: Path) -> DataConfig:
    put_file(root / "b.png", encoded(Image.new("L", (17, 16))))
    return labelled(root, "a.png", most_pixels=256)


@case("smaller than the crop, with `data.enlarge=false`")
def _(root: Path) -> DataConfig:
    put_file(root / "b.png", encoded(Image.new("L", (3, 16))))
    return labelled(root, "a.png", enlarge=False)


# Captions


@case("a text with a byte order mark and Windows line ends")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__txt=b"\xef\xbb\xbfa red square\r\n")
    return DataConfig(str(root), caption_column="txt")


@case("a text in UTF-16 with its mark")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__txt="a red square".encode("utf-16"))
    return DataConfig(str(root), caption_column="txt")


@case("a text in Latin-1")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__txt="un carré".encode("latin-1"))
    return DataConfig(str(root), caption_column="txt")


@case("an empty text, and a picture without a text")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__txt=" \r\n", b__png=PNG)
    return DataConfig(str(root), caption_column="txt")


@case("a folder of pictures, some with texts")
def _(root: Path) -> DataConfig:
    put(root, b___b__png=PNG)
    return captioned(root, "a/a.png")


@case("a caption column that is missing for every picture")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, b___a__png=PNG)
    return DataConfig(str(root), caption_column="text")


@case("a text of 20,000 characters, and one of 2 MB")
def _(root: Path) -> DataConfig:
    put(root, b__png=PNG, b__txt="x" * 20_000, c__png=PNG, c__txt="x" * 2_000_000)
    return captioned(root, "a.png")


@case("`metadata.jsonl`, `metadata.csv` and `metadata.parquet`, in any case")
def _(root: Path) -> DataConfig:
    put(root, a___1__png=PNG, a___Metadata__jsonl='{"file_name": "1.png", "text": "a"}')
    put(root, b___1__png=PNG, b___METADATA__CSV="\ufefffile_name,text\r\n1.png,b\r\n", c___1__png=PNG)
    table(root / "c", "metadata.parquet", file_name=["1.png"], text=["c"])
    return DataConfig(str(root), caption_column="text")


@case("metadata with U+2028, `./a.png` and `sub\\a.png`")
def _(root: Path) -> DataConfig:
    lines = ('{"file_name": "./a.png", "text": "a red\u2028square"}', '{"file_name": "sub\\\\a.png", "text": "b"}')
    put(root, a__png=PNG, sub___a__png=PNG, metadata__jsonl="\n".join(lines))
    return DataConfig(str(root), caption_column="text")


@case("metadata that write é as one character, where the file's name has two, as from a Mac")
def _(root: Path) -> DataConfig:
    put_file(root / "cafe\u0301.png")
    put(root, metadata__jsonl=json.dumps({"file_name": "caf\u00e9.png", "text": "a red square"}))
    return DataConfig(str(root), caption_column="text")


KOHYA = json.dumps({"a": {"caption": "a red square", "tags": "red, square"}})


@case("`metadata.json`, as kohya writes it, beside pictures with texts")
def _(root: Path) -> DataConfig:
    put(root, metadata__json=KOHYA)
    return captioned(root, "a.png")


@case("the same without texts")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__json=KOHYA)
    return DataConfig(str(root))


@case("`old_metadata.csv`")
def _(root: Path) -> DataConfig:
    put(root, old_metadata__csv="name\nx\n")
    return labelled(root, "a.png")


@case("two metadata files in a folder")
def _(root: Path) -> DataConfig:
    put(root, metadata__jsonl='{"file_name": "a.png"}', METADATA__csv="file_name\na.png\n")
    return labelled(root, "a.png")


@case("metadata that name a missing picture and a file that is not a picture")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, b__xyz="?", metadata__csv="file_name,text\na.png,a\ngone.png,b\nb.xyz,c\n")
    return DataConfig(str(root), caption_column="text")


@case("metadata whose JSON is nested 100,000 deep")
def _(root: Path) -> DataConfig:
    put(root, metadata__jsonl="[" * 100_000)
    return labelled(root, "a.png")


@case("numbers as captions, in Parquet")
def _(root: Path) -> DataConfig:
    table(root, image=structs(), n=[1, 2])
    return DataConfig(str(root), caption_column="n")


@case("numbers as captions, in metadata")
def _(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__jsonl='{"file_name": "a.png", "n": 5}')
    return DataConfig(str(root), caption_column="n")


@case("numbers as captions, in the json of a tar")
def _(root: Path) -> DataConfig:
    return tar(root, ("a.png", PNG), ("a.json", '{"n": 5}'), caption_column="n")


@case("a caption column with only nulls in one of two files")
def _(root: Path) -> DataConfig:
    table(root, "a.parquet", image=structs(), caption=["a", "b"])
    return table(root, "b.parquet", image=structs(), caption=pa.nulls(2))


@case("text that is not UTF-8")
def _(root: Path) -> DataConfig:
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"un carr\xe9", b"a"]).buffers())
    return table(root, image=structs(), caption=wrong)


@case("half of a surrogate pair in JSON")
def _(root: Path) -> DataConfig:
    lines = '{"file_name": "a.png", "text": "\\ud800"}\n{"file_name": "b.png", "text": "a"}'
    put(root, a__png=PNG, b__png=PNG, metadata__jsonl=lines)
    return DataConfig(str(root), caption_column="text")


@case("a null label")
def _(root: Path) -> DataConfig:
    table(root, image=structs(), caption=["a", "b"], artist=["x", None])
    return DataConfig(str(root), label_columns=("artist",))


# Parquet


@case("text as string_view, dictionary or large_string")
def _(root: Path) -> DataConfig:
    table(root, "a.parquet", image=structs(), caption=pa.array(["a", "b"], pa.string_view()))
    table(root, "b.parquet", image=structs(), caption=pa.array(["a", "a"]).dictionary_encode())
    return table(root, "c.parquet", image=structs(), caption=pa.array(["a", "b"], pa.large_string()))


@case("captions that `data.captions=join` makes longer than 10,000 characters")
def _(root: Path) -> DataConfig:
    table(root, image=structs(2), caption=[["x" * 6000, "y" * 6000], ["a red square", "a square"]])
    return DataConfig(str(root), captions="join")


@case("captions as lists, large lists or fixed lists")
def _(root: Path) -> DataConfig:
    for i, kind in enumerate((pa.list_(pa.string()), pa.large_list(pa.string_view()), pa.list_(pa.string(), 2))):
        table(root, f"{i}.parquet", image=structs(), caption=pa.array([["a", "b"], ["c", "d"]], kind))
    return DataConfig(str(root))


@case("images as plain binary, large_binary, binary_view or a struct")
def _(root: Path) -> DataConfig:
    for i, kind in enumerate((pa.binary(), pa.large_binary(), pa.binary_view())):
        table(root, f"{i}.parquet", image=pa.array([PNG, PNG], kind), caption=["a", "b"])
    return table(root, "3.parquet", image=structs(), caption=["a", "b"])


@case("null images")
def _(root: Path) -> DataConfig:
    return table(root, image=pa.array([PNG, None], pa.binary()), caption=["a", "b"])


@case("images that are all paths without bytes")
def _(root: Path) -> DataConfig:
    return table(root, image=structs(bytes=None), caption=["a", "b"])


@case("images of which some are paths without bytes")
def _(root: Path) -> DataConfig:
    images = [{"bytes": PNG, "path": None}, {"bytes": None, "path": "/abs/a.png"}]
    return table(root, image=pa.array(images, IMAGE), caption=["a", "b"])


@case("a column of paths")
def _(root: Path) -> DataConfig:
    return table(root, image=["a.png", "b.png"], caption=["a", "b"])


@case("folders `label=cat/` as a label column")
def _(root: Path) -> DataConfig:
    table(root, "label=cat/0.parquet", image=structs(1), caption=["a"])
    table(root, "label=d%20og/0.parquet", image=structs(1), caption=["a"])
    return DataConfig(str(root), label_columns=("label",))


@case("folders `split=train/` and `split=test/`")
def _(root: Path) -> DataConfig:
    table(root, "split=train/0.parquet", image=structs(1), caption=["a"])
    return table(root, "split=test/0.parquet", image=structs(1), caption=["a"])


@case("columns that no setting names")
def _(root: Path) -> DataConfig:
    return table(root, image=structs(1), caption=["a"], width=[1], url=["x"])


@case("a named column twice")
def _(root: Path) -> DataConfig:
    columns = [structs(1), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "caption", "caption"]), root / "a.parquet")
    return DataConfig(str(root))


@case("a column that is missing from one file")
def _(root: Path) -> DataConfig:
    table(root, "a.parquet", image=structs(1), caption=["a"])
    return table(root, "b.parquet", image=structs(1))


@case("a file of another format, or cut off")
def _(root: Path) -> DataConfig:
    table(root, image=structs(1), caption=["a"])
    put_file(root / "b.parquet", (root / "a.parquet").read_bytes()[:-9])
    return DataConfig(str(root))


@case("a damaged row group")
def _(root: Path) -> DataConfig:
    config = table(root, image=structs(1), caption=["a"])
    content = bytearray((root / "a.parquet").read_bytes())
    chunk = pq.read_metadata(root / "a.parquet").row_group(0).column(0)
    content[4 : 4 + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    (root / "a.parquet").write_bytes(content)
    return config


@case("repeated ids")
def _(root: Path) -> DataConfig:
    table(root, image=structs(2), caption=["a", "b"], id=["x", "x"])
    return DataConfig(str(root), id_column="id")


@case("empty ids, in two of three rows")
def _(root: Path) -> DataConfig:
    table(root, image=structs(3), caption=["a", "b", "c"], id=["x", "", " "])
    return DataConfig(str(root), id_column="id")


@case("missing ids")
def _(root: Path) -> DataConfig:
    table(root, image=structs(2), caption=["a", "b"], id=["x", None])
    return DataConfig(str(root), id_column="id")


# Tars


@case("two tars concatenated")
def _(root: Path) -> DataConfig:
    put_file(root / "a.tar", packed(*pair("a"), *pair("b")) + packed(*pair("c"), *pair("d")))
    return DataConfig(str(root), caption_column="txt")


@case("a truncated tar")
def _(root: Path) -> DataConfig:
    put_file(root / "a.tar", packed(*pair("a"))[:2048])
    return DataConfig(str(root), caption_column="txt")


@case("other bytes after the end")
def _(root: Path) -> DataConfig:
    put_file(root / "a.tar", packed(*pair("a")) + b"no tar" * 200)
    return DataConfig(str(root), caption_column="txt")


@case("dots in most names")
def _(root: Path) -> DataConfig:
    return tar(root, *pair("scan.0001"), *pair("scan.0002"), *pair("v1.5"))


@case("a dot in one name of three")
def _(root: Path) -> DataConfig:
    return tar(root, *pair("a"), *pair("b"), *pair("scan.0001"))


@case("two pictures with the same name, and a name without a picture")
def _(root: Path) -> DataConfig:
    return tar(root, *pair("a"), *pair("b"), ("b.webp", PNG), ("c.txt", "no picture"))


@case("members of a sample that are not next to each other")
def _(root: Path) -> DataConfig:
    return tar(root, ("a.png", PNG), *pair("b"), ("a.txt", "a"))


@case("links, devices, and names that point outside the tar")
def _(root: Path) -> DataConfig:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("d.png", tarfile.CHRTYPE), ("../u.png", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info)
    put_file(root / "a.tar", packed(*pair("a")) + out.getvalue())
    return DataConfig(str(root), caption_column="txt")


@case("members that no setting needs")
def _(root: Path) -> DataConfig:
    return tar(root, *pair("a"), ("a.npy", b"1"), ("a.cls", b"2"), ("._a.png", b"Apple"))


@case("a json member nested 100,000 deep")
def _(root: Path) -> DataConfig:
    deep, flat = ("a.json", "[" * 100_000), ("b.json", '{"text": "a caption"}')
    return tar(root, ("a.png", PNG), deep, ("b.png", PNG), flat, caption_column="text")


# Latents


def encoded_set(root: Path, x: torch.Tensor, columns: dict[str, list[str]] | None = None) -> DataConfig:
    condition = {"text": torch.zeros(len(x), 5)}
    latents.write_latents(root / "a.safetensors", x, condition, columns or {"caption": ["a", "b"]})
    return DataConfig(str(root))


@case("latents and conditions")
def _(root: Path) -> DataConfig:
    return encoded_set(root, torch.zeros(2, 4, 3, 3))


@case("other tensors")
def _(root: Path) -> DataConfig:
    from safetensors.torch import save_file

    tensors = {"latents": torch.zeros(2, 4, 3, 3), "condition.text": torch.zeros(2, 5), "aesthetic": torch.zeros(7)}
    save_file(tensors, root / "a.safetensors", {"columns": json.dumps({"caption": ["a", "b"]})})
    return DataConfig(str(root))


@case("numbers that are not finite")
def _(root: Path) -> DataConfig:
    return encoded_set(root, torch.tensor([0.0, float("inf")])[:, None, None, None].expand(-1, 4, 3, 3))


@case("a column of another length")
def _(root: Path) -> DataConfig:
    return encoded_set(root, torch.zeros(2, 4, 3, 3), {"caption": ["a", "b", "c"]})


@case("a header of 2^40 bytes")
def _(root: Path) -> DataConfig:
    put_file(root / "a.safetensors", (1 << 40).to_bytes(8, "little") + b"{}")
    return DataConfig(str(root))
