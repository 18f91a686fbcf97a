"""docs/inputs.md says what becomes of every input: each of its rows is made here, read, and compared."""

import os
import re
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem

from concept_trak import UserError
from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from tests.data.inputs import CASES

PAGE = Path(__file__).resolve().parents[2] / "docs/inputs.md"
ROWS = dict(re.findall(r"^\| (?!Input |---)(.+?) \| (.+) \|$", PAGE.read_text(), re.M))


class Timeless(AbstractFileSystem):
    """A file system with one file, of which nothing but the size is known."""

    protocol = "timeless"

    def ls(self, path, detail=True, **options):
        return [{"name": "data/a.parquet", "size": 4, "type": "file"}]

    def _open(self, path, *arguments, **options):
        return BytesIO(b"PAR1")


@pytest.fixture(autouse=True, scope="module")
def timeless():
    fsspec.register_implementation("timeless", Timeless, clobber=True)


def outcome(data: DataConfig) -> str:
    """What becomes of a data set, in the words of the page."""
    try:
        surveyed = survey(data)
        rows = [row for shard in shards(surveyed.sources, 2) for row in samples(shard, data, 8)]
    except UserError as error:
        return f"refused: {error}"
    count = sum(isinstance(row, Sample) for row in rows)
    rejects = Counter(row.reason for row in rows if not isinstance(row, Sample))
    left_out = "; ".join(map(str, surveyed.left_out))
    return "; ".join(filter(None, [
        f"{count} sample{'s' * (count != 1)}" if count else "",
        f"rejected: {', '.join(f'{n} {reason}' for reason, n in sorted(rejects.items()))}" if rejects else "",
        f"left out: {left_out}" if left_out else "",
    ]))  # fmt: skip


def require_outcome(expected: str, make: Callable[[Path], DataConfig], folder: Path) -> None:
    """Make an input in a folder and compare what becomes of it; of a refusal, `expected` is a part."""
    before = set(os.listdir(folder.parent))
    now = outcome(make(folder))
    if expected.startswith("refused: "):
        assert now.startswith("refused: ")
        assert expected.removeprefix("refused: ") in now
    else:
        assert now == expected
    assert set(os.listdir(folder.parent)) == before, "something was written outside"


@pytest.mark.parametrize("row", CASES)
def test_an_input_gives_what_the_page_says(row, tmp_path):
    require_outcome(ROWS[row], CASES[row], tmp_path)


def test_every_row_of_the_page_has_an_input():
    assert set(ROWS) == set(CASES)
