"""Captions as trainers read them: encodings, lines, bounds, and values that are no text."""

import json
import re

import pyarrow as pa
import pytest

from concept_trak import UserError
from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data.index import indexed_rows, label_values
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from concept_trak.data.text import (
    MOST_DEPTH,
    decode_text,
    json_depth,
    one_line,
    parse_json,
    read_list,
    text_problem,
)
from concept_trak.store.part import Reject
from tests.data.inputs import PNG, pair, put, put_file, structs, table, tar


def read(data: DataConfig) -> dict[str, str]:
    """Caption, or reason and message, by id."""
    plan = shards(survey(data).sources, 2)
    rows = [row for shard in plan for row in samples(shard, data, 4)]
    return {
        row.id if isinstance(row, Sample) else row.sample_id: row.caption
        if isinstance(row, Sample)
        else f"{row.reason}: {row.message}"
        for row in rows
    }


TEXTS = {
    "bom": (b"\xef\xbb\xbfa red square\r\n", "a red square"),
    "utf-16": ("a red square\r\n".encode("utf-16"), "a red square"),
    "utf-16 big": (b"\xfe\xff" + "un carré".encode("utf-16-be"), "un carré"),
    "utf-32": ("a red square".encode("utf-32"), "a red square"),
    "old mac": (b"a red square\ra blue circle\r", "a red square\na blue circle"),
    "umlaut": ("ein rötliches Quadrat\n".encode(), "ein rötliches Quadrat"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_text_of_a_file_whatever_wrote_it(kind, tmp_path):
    content, expected = TEXTS[kind]
    assert decode_text(content, "a.txt") == expected
    put(tmp_path, a__png=PNG, a__txt=content)
    assert read(DataConfig(str(tmp_path), caption_column="txt")) == {"a.png": expected}
    tar(tmp_path / "tars", ("a.png", PNG), ("a.txt", content))
    assert list(read(DataConfig(f"{tmp_path}/tars", caption_column="txt")).values()) == [expected]


def test_a_text_in_another_encoding_is_a_reject_that_names_the_byte(tmp_path):
    put(tmp_path, a__png=PNG, a__txt="un carré".encode("latin-1"))
    data = DataConfig(str(tmp_path), caption_column="txt")
    assert read(data) == {"a.png": "text: a.txt is not UTF-8 (unexpected end of data at byte 7); save it as UTF-8"}
    tar(tmp_path / "tars", ("a.png", PNG), ("a.txt", b"\xe9t\xe9"))
    ((_, message),) = read(DataConfig(f"{tmp_path}/tars", caption_column="txt")).items()
    assert message.startswith("text: its txt member is not UTF-8 (invalid continuation byte at byte 0)")


LINES = "\r\n a red square \r\n\r\na blue circle\r\na green triangle"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("first", {"a red square \n\na blue circle\na green triangle"}),
        ("whole", {"a red square \n\na blue circle\na green triangle"}),
        ("first_line", {"a red square"}),
        ("one_line", {"a red square", "a blue circle", "a green triangle"}),
    ],
)
def test_which_lines_of_a_text_are_the_caption(how, expected, tmp_path):
    for i in range(30):
        put_file(tmp_path / f"{i}.png")
        put_file(tmp_path / f"{i}.txt", LINES)
    data = DataConfig(str(tmp_path), caption_column="txt", captions=how)
    first = read(data)
    assert set(first.values()) == expected
    assert first == read(data), "a line is drawn anew in every run"


def test_whole_is_another_word_and_no_other_setting():
    assert DataConfig(captions="whole") == DataConfig()


def test_a_line_of_a_column_counts_like_one_of_a_file(tmp_path):
    table(tmp_path, image=structs(), caption=["a\nb", "c"])
    assert list(read(DataConfig(str(tmp_path), captions="first_line")).values()) == ["a", "c"]


@pytest.mark.parametrize("place", ["caption", "label", "id"])
def test_text_without_bound_is_a_reject_whatever_it_is_for(place, tmp_path):
    """A file of some kilobytes may unpack to text without end."""
    values = {"caption": ["a", "b"], "label": ["x", "y"], "id": ["1", "2"]}
    values[place] = [values[place][0], "x" * 10_001]
    table(tmp_path, image=structs(), **values)
    data = DataConfig(str(tmp_path), id_column="id", label_columns=("label",))
    bad = f"text: {place} has 10001 characters; expected at most 10000"
    assert read(data) == {"1": "a", "a.parquet:1" if place == "id" else "2": bad}


def test_a_text_file_of_gigabytes_is_not_read_whole(tmp_path):
    put(tmp_path, a__png=PNG)
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(40 << 30)
    ((_, message),) = read(DataConfig(str(tmp_path), caption_column="txt")).items()
    assert message == "text: a.txt has more than 1048576 bytes of text, which is no caption; shorten it"


def test_labels_that_are_null_are_no_labels(tmp_path):
    table(tmp_path, image=structs(), caption=["a", "b"], artist=["x", None])
    data = DataConfig(str(tmp_path), label_columns=("artist",))
    (shard,) = shards(survey(data).sources, 2)
    assert [labels for _, labels in label_values(shard)] == [{"artist": "x"}, {}]
    assert [row.labels for row in indexed_rows(shard)] == [{"artist": "x"}, {}]
    assert [row.labels for row in samples(shard, data, 4) if isinstance(row, Sample)] == [{"artist": "x"}, {}]


def test_numbers_among_captions_are_rejects_and_numbers_alone_a_refusal(tmp_path):
    mixed = [("a.png", PNG), ("a.json", '{"n": 5}'), ("b.png", PNG), ("b.json", '{"n": "five"}')]
    tar(tmp_path, *mixed)
    data = DataConfig(str(tmp_path), caption_column="n")
    assert read(data)["a.tar:a"] == "caption_type: n is 5, a int; expected text, or a list of texts"
    tar(tmp_path, *mixed[:2])
    with pytest.raises(UserError, match=r"data\.caption_column='n' holds numbers in .*a\.tar \(such as 5\); name the"):
        read(data)
    classes = DataConfig(str(tmp_path), caption_column="n", captions="class")
    (shard,) = shards(survey(classes, "class").sources, 2)
    assert [row.caption for row in samples(shard, classes, 4) if isinstance(row, Sample)] == ["5"]


def test_captions_of_other_arrow_types_are_refused_with_the_column(tmp_path):
    for kind in (pa.int32(), pa.float64(), pa.bool_(), pa.binary(), pa.date32()):
        table(tmp_path, image=structs(1), n=pa.nulls(1, kind))
        with pytest.raises(UserError, match=rf"data\.caption_column='n' holds {re.escape(str(kind))}; expected"):
            read(DataConfig(str(tmp_path), caption_column="n"))


def test_json_is_bounded_in_depth_and_length():
    nested = lambda n: json.loads("[" * n + "]" * n)  # noqa: E731
    assert [json_depth(nested(n)) for n in (1, 5, 40)] == [1, 5, 40]
    assert json_depth({"a": [1, {"b": "c"}]}) == 3
    assert parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH, "x") == nested(MOST_DEPTH)
    for text in ("[" * 33 + "]" * 33, "[" * 100_000, '{"a":' * 50_000, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(UserError, match=r"^x is .*JSON .*nested"):
            parse_json(text, "x")
    for wrong in (b"", b"{", b"{'a': 1}", b"\xff\xfe{", b"1" * 5_000, b'"' + bytes(9) + b'"'):
        with pytest.raises(UserError, match=r"^x is "):
            parse_json(wrong, "x")
    with pytest.raises(UserError, match=r"x has more than 1048576 bytes"):
        parse_json(b" " * (1 << 21), "x")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.json", None, "gone.json' cannot be read .*expected a list, or a file with one"),
        ("c.json", b"[{", "c.json' is no readable JSON"),
        ("c.yaml", b"- a: [", "c.yaml' is no readable YAML"),
        ("c.yaml", b"- {name: a, prompt: 2026-99-99}", "c.yaml' is no readable YAML .month"),
        ("c.yaml", b"name: a", "c.yaml' holds no list"),
        ("c.yaml", b"- {name: \xe4}", "c.yaml' is not UTF-8"),
    ],
)
def test_a_file_without_a_list_is_named(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^concepts='.*{says}"):
        read_list(f"{tmp_path}/{name}", "concepts")


def test_a_list_is_read_from_json_and_yaml(tmp_path):
    for name, text in (("a.JSON", '[{"a": "\\u00e9"}, 1]'), ("a.yaml", "- a: é\n- 1\n"), ("a", "[{a: é}, 1]")):
        (tmp_path / name).write_text(text, "utf-8-sig")
        assert read_list(f"{tmp_path}/{name}", "concepts") == [{"a": "é"}, 1]


def test_what_is_shown_is_one_printable_line():
    assert one_line("a\x1b[2J\nb\tc\x00") == r"a\x1b[2J b c\x00"
    assert one_line("\u202eevil") == r"\u202eevil"
    assert one_line("x" * 400) == "x" * 300 + "..."
    assert one_line("caf\udce9") == r"caf\udce9"


def test_text_that_no_file_can_store():
    assert text_problem("c", "a") == text_problem("c", None) == text_problem("c", 5) == text_problem("c", ["a"]) == ""
    assert "not Unicode" in text_problem("c", ["a", "\ud800"])
    assert "10001 characters" in text_problem("c", [["x" * 10_001]])


def test_a_dot_in_a_name_is_named_where_it_costs_the_picture(tmp_path):
    tar(tmp_path, *pair("a"), *pair("b"), *pair("c.1"))
    found = read(DataConfig(str(tmp_path), caption_column="txt"))
    assert found["a.tar:c"] == (
        "no_image: has no member for data.image_column='image' (there: 1.png, 1.txt); a sample's name ends at its "
        "first dot"
    )
    tar(tmp_path, *pair("scan.0001"), *pair("scan.0002"))
    with pytest.raises(
        UserError, match=r"first dot, so scan\.0001\.png is the member '0001\.png' of the sample 'scan'"
    ):
        read(DataConfig(str(tmp_path), caption_column="txt"))


def test_a_row_that_cannot_be_read_says_so_in_every_reading(tmp_path):
    put(tmp_path, a__png=PNG, a__txt="x" * 20_000)
    data = DataConfig(str(tmp_path), caption_column="txt")
    (shard,) = shards(survey(data).sources, 2)
    first, again = (list(samples(shard, data, 4)) for _ in range(2))
    assert first == again
    assert isinstance(first[0], Reject)
    assert [row.caption for row in indexed_rows(shard)] == [""]
