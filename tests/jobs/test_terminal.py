"""Hostile ids, captions and names of files are escaped on the terminal, on pages and in logs, and kept in tables."""

import io
import logging
import sys
from functools import partial
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from concept_trak.data.text import EscapedOutput
from jobs.configure import main
from jobs.diff import DiffConfig, diff
from jobs.exit_codes import ended
from tests.jobs.world import altered, reraise

CAPTION = "\x1b]0;title\x07a red\u202e elgnairt\u202c\x9b2J\u200b triangle\r"
ID = "\x1b[2Jcls\nforged    1  row"
RAW = ["\x1b", "\x07", "\x9b", "\u202e", "\u202c", "\u200b", "\r", "\x00"]


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def handle_data(self, data):
        self.found += data

    def handle_starttag(self, tag, attrs):
        self.found += "".join(value or "" for _, value in attrs)


def test_hostile_captions_and_ids(world, tmp_path, capsys):
    def spoil(rows):
        for number, row in enumerate(rows):
            row["id"], row["caption"] = f"{ID}{number}", f"{CAPTION}{number}"

    data = altered(world, tmp_path / "da\x1b[31mta", spoil)
    found = world.audit(tmp_path / "store", f"data.uri='{data}'", "data.id_column=id")
    assert found.code == 0
    assert world.audit(tmp_path / "store", f"data.uri='{data}'", "data.id_column=id", "damping=3", "audit=b").code == 0
    assert diff(DiffConfig(str(tmp_path / "store"), "first", "b")) == 0
    said = capsys.readouterr()
    assert "\\x1b[2Jcls\\nforged" in said.out
    pages = [path.read_text() for path in (tmp_path / "store/audits").rglob("*.html")]
    assert len(pages) == 4
    for text in (said.out, said.err, *pages):
        seen = Texts()
        seen.feed(text)
        assert not [c for c in RAW if c in text or c in seen.found]
    assert "\\u202e elgnairt" in "".join(pages)
    top = pq.read_table(found.folder / "top.parquet").to_pylist()
    assert all(row["caption"].startswith(CAPTION) and row["sample_id"].startswith(ID) for row in top), "data stay data"


def test_no_error_reaches_the_terminal_raw(capsys):
    assert ended(partial(reraise, RuntimeError("a\x1b[2J\u202e bug"))) == 5
    assert ended(partial(reraise, OSError("a\x1b[2J\u202e disk"))) == 4
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said
    assert not [c for c in RAW if c in said]


def test_whatever_a_verb_or_a_library_prints_is_escaped(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs.status"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back at the end
    monkeypatch.setattr(sys, "stderr", sys.stderr)

    def verb(config) -> int:
        print("stage \x1b[2J")
        logging.getLogger("a library").warning("\x1b[1m\u202e")
        sys.stderr.writelines(["bar\r", "\x1b[A"])
        return 0

    from jobs.status import StatusConfig

    with pytest.raises(SystemExit):
        main(verb, "status", StatusConfig)
    said = capsys.readouterr()
    assert said.out == "stage \\x1b[2J\n"
    assert said.err.endswith("bar\r\\x1b[A")
    assert "\x1b" not in said.err


def test_the_stream_is_otherwise_its_own():
    below = io.StringIO()
    output = EscapedOutput(below)
    assert output.write("a\x1b") == 2
    assert output.getvalue() == "a\\x1b"
    assert not output.isatty()
