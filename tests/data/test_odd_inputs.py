"""Odd inputs that a stranger may bring: samples, rejects or one message, and never an exception of a library."""

import datetime
import decimal
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from concept_trak.config import DataConfig
from tests.data.inputs import PNG, encoded_set, labelled, packed, pair, put, put_file, structs, table, tar
from tests.data.test_inputs_page import require_outcome

CASES: dict[str, tuple[str, Callable[[Path], DataConfig]]] = {}


def gives(expected: str) -> Callable[[Callable[[Path], DataConfig]], Callable[[Path], DataConfig]]:
    def keep(make: Callable[[Path], DataConfig]) -> Callable[[Path], DataConfig]:
        CASES[make.__name__] = (expected, make)
        return make

    return keep


@gives("1 sample")
def csv_utf16(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name,text\na.png,hallo\n".encode("utf-16"))
    return DataConfig(str(root), caption_column="text")


@gives("refused: entry 1, has no file_name")
def csv_semicolon(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name;text\na.png;hallo\n")
    return DataConfig(str(root), caption_column="text")


@gives("refused: has more values than there are columns")
def csv_more_values(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name,text\na.png,hallo, world\n")
    return DataConfig(str(root), caption_column="text")


@gives("rejected: 1 no_caption")
def csv_short_row(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name,text\na.png\n")
    return DataConfig(str(root), caption_column="text")


@gives("refused: 'text' is known of no image")
def csv_header_only(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name,text\n")
    return DataConfig(str(root), caption_column="text")


@gives("refused: metadata.csv cannot be read (unexpected end of data)")
def csv_quote(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv='file_name,text\na.png,"open\n')
    return DataConfig(str(root), caption_column="text")


@gives("1 sample")
def csv_nul(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name,text\na.png,a\0b\n")
    return DataConfig(str(root), caption_column="text")


@gives("refused: larger than field limit")
def csv_huge_field(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__csv="file_name,text\na.png," + "x" * 200000 + "\n")
    return DataConfig(str(root), caption_column="text")


@gives("1 sample")
def jsonl_empty(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__jsonl="")
    return DataConfig(str(root), caption_column="label")


@gives("1 sample; rejected: 1 no_image")
def jsonl_abs(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__jsonl='{"file_name":"/etc/passwd","text":"x"}\n{"file_name":"a.png","text":"x"}')
    return DataConfig(str(root), caption_column="text")


@gives("1 sample; rejected: 1 no_caption, 2 no_image")
def jsonl_dir(root: Path) -> DataConfig:
    put(
        root,
        s___a__png=PNG,
        a__png=PNG,
        metadata__jsonl='{"file_name":"s","text":"x"}\n{"file_name":"","text":"y"}\n{"file_name":"a.png","text":"x"}',
    )
    return DataConfig(str(root), caption_column="text")


@gives("rejected: 1 caption_type")
def jsonl_nested_value(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__jsonl='{"file_name":"a.png","text":{"a":["b"]}}')
    return DataConfig(str(root), caption_column="text")


@gives("1 sample")
def jsonl_list_caption(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__jsonl='{"file_name":"a.png","text":["b","c"]}')
    return DataConfig(str(root), caption_column="text")


@gives("refused: metadata.parquet cannot be read")
def metadata_parquet_bad(root: Path) -> DataConfig:
    put(root, a__png=PNG, metadata__parquet=b"PAR1")
    return DataConfig(str(root), caption_column="text")


@gives("1 sample")
def metadata_parquet_alone(root: Path) -> DataConfig:
    table(root, "metadata.parquet", image=structs(1), caption=["a"])
    return DataConfig(str(root))


@gives("refused: or rename a folder that is called so")
def colon_folder(root: Path) -> DataConfig:
    return labelled(root / "a::b", "a.png")


@gives("1 sample")
def percent_folder(root: Path) -> DataConfig:
    return labelled(root / "a%20b #?", "x [1]*.png")


@gives("1 sample")
def format_given_odd_ending(root: Path) -> DataConfig:
    table(root, "data.bin", image=structs(1), caption=["a"])
    return DataConfig(str(root / "data.bin"), format="parquet")


@gives("refused: there: 1 file ending .bin (data.bin)")
def format_auto_odd_ending(root: Path) -> DataConfig:
    table(root, "data.bin", image=structs(1), caption=["a"])
    return DataConfig(str(root / "data.bin"))


@gives("1 sample; left out: 1 file with hidden names")
def spark_dir(root: Path) -> DataConfig:
    table(root, "x.parquet/part-0.snappy.parquet", image=structs(1), caption=["a"])
    put(root, **{"x.parquet____SUCCESS": ""})
    return DataConfig(str(root))


@gives("1 sample")
def single_png(root: Path) -> DataConfig:
    put(root, a__png=PNG)
    return DataConfig(str(root / "a.png"), caption_column="label")


@gives("refused: 'txt' is known of no image")
def single_png_txt(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__txt="x")
    return DataConfig(str(root / "a.png"), caption_column="txt")


@gives("refused: there: 1 file ending .csv (urls.csv)")
def url_list(root: Path) -> DataConfig:
    put(root, urls__csv="url,caption\nhttp://x,y\n")
    return DataConfig(str(root))


@gives("refused: has 1 webdataset files but no rows")
def tar_dirs_only(root: Path) -> DataConfig:
    o = io.BytesIO()
    with tarfile.open(fileobj=o, mode="w") as t:
        i = tarfile.TarInfo("d")
        i.type = tarfile.DIRTYPE
        t.addfile(i)
    put_file(root / "a.tar", o.getvalue())
    return DataConfig(str(root), caption_column="txt")


@gives("1 sample")
def tar_latin_names(root: Path) -> DataConfig:
    o = io.BytesIO()
    with tarfile.open(fileobj=o, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as t:
        for n, d in (("caf\xe9.png", PNG), ("caf\xe9.txt", b"x")):
            i = tarfile.TarInfo(n)
            i.size = len(d)
            t.addfile(i, io.BytesIO(d))
    put_file(root / "a.tar", o.getvalue())
    return DataConfig(str(root), caption_column="txt")


@gives("rejected: 1 text")
def tar_latin_names_key(root: Path) -> DataConfig:
    tar_latin_names(root)
    return DataConfig(str(root), caption_column="txt", id_column="__key__")


@gives("rejected: 1 several_images")
def tar_dup(root: Path) -> DataConfig:
    return tar(root, ("a.png", PNG), ("a.png", PNG), ("a.txt", "x"))


@gives("1 sample; rejected: 1 no_caption")
def tar_json_list(root: Path) -> DataConfig:
    return tar(
        root, ("a.png", PNG), ("a.json", "[1]"), ("b.png", PNG), ("b.json", '{"text":"x"}'), caption_column="text"
    )


@gives("refused: holds numbers in")
def tar_bool(root: Path) -> DataConfig:
    return tar(root, ("a.png", PNG), ("a.json", '{"text":true}'), caption_column="text")


@gives("refused: 'image' is in none of the first samples")
def tar_no_images(root: Path) -> DataConfig:
    return tar(root, ("a.txt", "x"))


@gives("1 sample")
def tar_uppercase(root: Path) -> DataConfig:
    return tar(root, ("a.PNG", PNG), ("a.TXT", "x"))


@gives("refused: but no rows")
def tar_empty(root: Path) -> DataConfig:
    put_file(root / "a.tar", packed())
    return DataConfig(str(root), caption_column="txt")


@gives("refused: is not a readable tar file (empty file)")
def tar_zero(root: Path) -> DataConfig:
    put_file(root / "a.tar", b"")
    return DataConfig(str(root), caption_column="txt")


@gives("refused: is not a readable tar file (bad checksum)")
def tar_pax_bad(root: Path) -> DataConfig:
    d = bytearray(packed(*pair("a")))
    d[156:157] = b"x"
    put_file(root / "a.tar", bytes(d))
    return DataConfig(str(root), caption_column="txt")


@gives("1 sample")
def pq_dotcol(root: Path) -> DataConfig:
    table(root, image=structs(1), **{"a.b": ["x"]})
    return DataConfig(str(root), caption_column="a.b")


@gives("refused: holds struct<en: string>; expected strings")
def pq_struct_caption(root: Path) -> DataConfig:
    table(root, image=structs(1), caption=pa.array([{"en": "x"}]))
    return DataConfig(str(root))


@gives("refused: expected strings, or lists of strings")
def pq_list_struct(root: Path) -> DataConfig:
    table(root, image=structs(1), caption=pa.array([[{"en": "x"}]]))
    return DataConfig(str(root))


@gives("1 sample")
def pq_label_kinds(root: Path) -> DataConfig:
    table(
        root,
        image=structs(1),
        caption=["a"],
        b=pa.array([b"\xff"]),
        t=pa.array([datetime.datetime.now()]),
        m=pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        d=pa.array([{"x": "y"}]),
        e=pa.array([1.5], pa.float16()),
        u=pa.array([bytes(16)], pa.uuid()),
    )
    return DataConfig(str(root), label_columns=("b", "t", "m", "d", "e", "u"))


@gives("refused: but no rows")
def pq_no_columns(root: Path) -> DataConfig:
    pq.write_table(pa.table({}), root / "a.parquet")
    return DataConfig(str(root))


@gives("refused: is not a readable Parquet file")
def pq_lfs(root: Path) -> DataConfig:
    put(root, a__parquet=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return DataConfig(str(root))


@gives("refused: data.image_column='image' is 2 columns of")
def pq_image_dup(root: Path) -> DataConfig:
    pq.write_table(
        pa.Table.from_arrays([structs(1), structs(1), pa.array(["a"])], ["image", "image", "caption"]),
        root / "a.parquet",
    )
    return DataConfig(str(root))


@gives("1 sample; left out: 1 column that no setting names")
def pq_other_dup(root: Path) -> DataConfig:
    pq.write_table(
        pa.Table.from_arrays(
            [structs(1), pa.array(["a"]), pa.array([1]), pa.array([2])], ["image", "caption", "x", "x"]
        ),
        root / "a.parquet",
    )
    return DataConfig(str(root))


@gives("refused: holds decimal128(2, 1); expected strings")
def pq_decimal_caption(root: Path) -> DataConfig:
    table(root, image=structs(1), caption=[decimal.Decimal("1.5")])
    return DataConfig(str(root))


@gives("2 samples")
def pq_dict_images(root: Path) -> DataConfig:
    table(root, image=pa.array([PNG, PNG]).dictionary_encode(), caption=["a", "b"])
    return DataConfig(str(root))


@gives("refused: 'image' is null; expected struct")
def pq_null_image_col(root: Path) -> DataConfig:
    table(root, image=pa.nulls(1), caption=["a"])
    return DataConfig(str(root))


@gives("refused: holds null; expected strings or integers")
def pq_null_id(root: Path) -> DataConfig:
    table(root, image=structs(1), caption=["a"], id=pa.nulls(1))
    return DataConfig(str(root), id_column="id")


@gives("2 samples")
def pq_id_hostile(root: Path) -> DataConfig:
    table(root, image=structs(2), caption=["a", "b"], id=["\x1b[2Jx", "a\nb"])
    return DataConfig(str(root), id_column="id")


@gives("refused: no condition, or a wrong shape")
def st_model(root: Path) -> DataConfig:
    save_file({"w": torch.zeros(3)}, root / "a.safetensors")
    return DataConfig(str(root))


@gives("refused: is no safetensors file")
def st_deep(root: Path) -> DataConfig:
    h = b'{"latents":' + b"[" * 100000
    put_file(root / "a.safetensors", len(h).to_bytes(8, "little") + h)
    return DataConfig(str(root))


@gives("refused: do not take 1000000000000000 bytes")
def st_offsets(root: Path) -> DataConfig:
    h = json.dumps(
        {
            "latents": {"dtype": "F32", "shape": [2, 1, 1, 1], "data_offsets": [0, 10**15]},
            "condition.t": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        }
    ).encode()
    put_file(root / "a.safetensors", len(h).to_bytes(8, "little") + h + bytes(16))
    return DataConfig(str(root))


@gives("refused: KeyError: 'X9'")
def st_baddtype(root: Path) -> DataConfig:
    h = json.dumps(
        {
            "latents": {"dtype": "X9", "shape": [2, 1, 1, 1], "data_offsets": [0, 8]},
            "condition.t": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        }
    ).encode()
    put_file(root / "a.safetensors", len(h).to_bytes(8, "little") + h + bytes(16))
    return DataConfig(str(root))


@gives("refused: do not take 8 bytes")
def st_hugerows(root: Path) -> DataConfig:
    h = json.dumps(
        {
            "latents": {"dtype": "F32", "shape": [10**12, 1, 1, 1], "data_offsets": [0, 8]},
            "condition.t": {"dtype": "F32", "shape": [10**12, 1], "data_offsets": [0, 8]},
        }
    ).encode()
    put_file(root / "a.safetensors", len(h).to_bytes(8, "little") + h + bytes(16))
    return DataConfig(str(root))


@gives("refused: [-1, 1, 1, 1] of F32 do not take")
def st_negrows(root: Path) -> DataConfig:
    h = json.dumps(
        {
            "latents": {"dtype": "F32", "shape": [-1, 1, 1, 1], "data_offsets": [0, 8]},
            "condition.t": {"dtype": "F32", "shape": [-1, 1], "data_offsets": [0, 8]},
        }
    ).encode()
    put_file(root / "a.safetensors", len(h).to_bytes(8, "little") + h + bytes(16))
    return DataConfig(str(root))


@gives("refused: it is cut off")
def st_truncated(root: Path) -> DataConfig:
    encoded_set(root, torch.zeros(2, 4, 3, 3))
    p = root / "a.safetensors"
    p.write_bytes(p.read_bytes()[:-20])
    return DataConfig(str(root))


@gives("1 sample; rejected: 1 caption_type")
def st_caption_object(root: Path) -> DataConfig:
    return encoded_set(root, torch.zeros(2, 4, 3, 3), {"caption": [{"a": 1}, "b"]})


@gives("refused: caf\\udce9 is not UTF-8; rename it")
def odd_latin_folder(root: Path) -> DataConfig:
    d = os.fsdecode(os.fsencode(root) + b"/caf\xe9")
    os.mkdir(d)
    Path(d, "a.png").write_bytes(PNG)
    return DataConfig(str(root), caption_column="label")


@gives("refused: caf\\udce9.parquet is not UTF-8; rename it")
def odd_latin_parquet(root: Path) -> DataConfig:
    table(root, image=structs(1), caption=["a"])
    os.rename(root / "a.parquet", os.fsdecode(os.fsencode(root) + b"/caf\xe9.parquet"))
    return DataConfig(str(root))


@gives("1 sample; rejected: 1 no_caption; left out: 1 file of text without an image")
def txt_upper(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__TXT="x", b__png=PNG, b__txt="y")
    return DataConfig(str(root), caption_column="txt")


@gives("refused: 'caption' is known of no image")
def caption_files(root: Path) -> DataConfig:
    put(root, a__png=PNG, a__caption="x")
    return DataConfig(str(root))


@gives("1 sample; left out: 1 file linking to nothing")
def loop_link(root: Path) -> DataConfig:
    os.symlink("loop.png", root / "loop.png")
    return labelled(root, "a.png")


@gives("1 sample; left out: 1 file linking to folders that are read under another name")
def loop_dir(root: Path) -> DataConfig:
    (root / "x").mkdir()
    os.symlink(root / "x", root / "x/self")
    return labelled(root, "x/a.png")


@gives("1 sample; rejected: 1 no_caption; left out: 1 file of a special kind (pipe, socket or device)")
def fifo_txt(root: Path) -> DataConfig:
    put(root, a__png=PNG)
    os.mkfifo(root / "a.txt")
    put(root, b__png=PNG, b__txt="x")
    return DataConfig(str(root), caption_column="txt")


@gives("rejected: 1 decode")
def huge_gif_dims(root: Path) -> DataConfig:
    return labelled(root, "a.gif", image=b"GIF89a\xff\xff\xff\xff\x00\x00\x00;")


@gives("refused: data.other_captions='txt' is known of no image")
def label_null_caption(root: Path) -> DataConfig:
    return labelled(root, "a.png", other_captions=("txt",))


@gives("refused: does not exist")
def window_path(root: Path) -> DataConfig:
    return DataConfig("C:\\data\\train")


@gives("refused: does not exist")
def tilde(root: Path) -> DataConfig:
    return DataConfig("~/definitely-not-here")


@gives("refused: data.uri='/tmp/a\\nb' does not exist")
def newline_uri(root: Path) -> DataConfig:
    return DataConfig("/tmp/a\nb")


@gives("refused: cannot be read (ValueError: embedded null byte)")
def nul_uri(root: Path) -> DataConfig:
    return DataConfig("/tmp/a\0b")


@pytest.mark.parametrize("name", CASES)
def test_an_odd_input_gives_what_is_expected(name, tmp_path):
    expected, make = CASES[name]
    require_outcome(expected, make, tmp_path)
