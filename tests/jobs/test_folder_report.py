"""The report of an audit as a folder: light pages, pictures and originals beside them, and the page over all audits."""

import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
from PIL import Image

from concept_trak.report.index_page import write_index
from concept_trak.report.render import SIFT
from concept_trak.store.store import Store
from jobs.diff import DiffConfig, diff
from tests.jobs.world import CONCEPT, Found, World
from tests.report.browser import CHROMIUM, colours, visit
from tests.report.outline import Element, parse

RED = "{name: red, prompt: a red circle, without_prompt: a circle, samples: 2}"


@dataclass(frozen=True)
class Visited:
    """A store with an audit whose report is one file, and a later one whose report is a folder."""

    store: Path
    found: Found

    @property
    def report(self) -> Path:
        return self.found.folder / "report.html"

    def pages(self) -> list[Path]:
        return [self.store / "audits/index.html", self.report, *sorted((self.found.folder / "report").glob("*.html"))]


@pytest.fixture(scope="module")
def visited(world: World, baseline: Found, tmp_path_factory) -> Visited:
    store = shutil.copytree(baseline.store, tmp_path_factory.mktemp("folder") / "store")
    asked = f"concepts=[{CONCEPT},{RED}]"
    found = world.audit(store, "audit=second", "report=folder", "since=latest", asked)
    assert found.code == 0
    assert diff(DiffConfig(str(store), "first", "second")) == 0
    return Visited(store, found)


def document(page: Path) -> Element:
    return parse(page.read_text())


def targets(page: Path, tag: str, attribute: str) -> list[Path]:
    """The files that a page names, anchors without their files left out."""
    named = [element.attributes.get(attribute, "") for element in document(page).all(tag)]
    files = [unquote(name.partition("#")[0]) for name in named if not name.startswith(("#", "data:"))]
    assert not [name for name in files if re.match(r"\w+:|/", name)], "a page leads out of the store"
    return [(page.parent / name).resolve() for name in files]


def test_every_link_and_picture_is_there(visited: Visited):
    for page in visited.pages():
        for file in (*targets(page, "a", "href"), *targets(page, "img", "src")):
            assert file.is_file(), f"{page.name} names {file}, which is not there"
    assert not targets(visited.store / "audits/first/report.html", "img", "src"), "a page of one file needs no other"


def test_every_concept_is_a_page_that_is_reached_from_the_list_of_audits(visited: Visited):
    index = visited.pages()[0]
    assert visited.report.resolve() in targets(index, "a", "href")
    concepts = {visited.found.folder / f"report/{name}.html" for name in ("triangle", "red")}
    assert concepts <= set(targets(visited.report, "a", "href"))
    for page in concepts:
        assert {visited.report.resolve(), *concepts} <= set(targets(page, "a", "href")), "no way back, or to the others"
        here = [a.text for a in document(page).all("a") if a.attributes.get("aria-current") == "page"]
        assert here == [page.stem]
    compared = visited.found.folder / "diff-first.html"
    assert compared.resolve() in targets(index, "a", "href")


def test_pages_are_for_everybody(visited: Visited):
    for page in visited.pages():
        tree = document(page)
        assert tree.all("html")[0].attributes["lang"] == "en"
        levels = [int(element.tag[1]) for element in tree.all() if re.fullmatch("h[1-6]", element.tag)]
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels)), f"{page.name}: {levels}"
        assert tree.all("a")[0].attributes["href"] == "#content", "the first stop of the keyboard skips the rest"
        assert tree.all("main")[0].attributes["id"] == "content"
        assert all(image.attributes.get("alt") for image in tree.all("img"))
        regions = [e for e in tree.all() if e.attributes.get("role") == "region"]
        assert all(e.attributes.get("tabindex") == "0" for e in regions), "a keyboard cannot scroll it"
        assert all(e.attributes.get("aria-label") or e.attributes.get("aria-labelledby") for e in regions)
        tools = [e for e in tree.all("div") if "tools" in e.attributes.get("class", "").split()]
        scripts = [e.text for e in tree.all("script")]
        assert scripts == [" ".join(SIFT.split())] * bool(tools), "a script that does more than filter and sort"


def test_an_original_is_the_file_that_lies_in_the_data(visited: Visited, world: World):
    inside = {
        row["image"]["bytes"] for path in (world.root / "shapes").iterdir() for row in pq.read_table(path).to_pylist()
    }
    originals = [p.read_bytes() for p in (visited.found.folder / "report/originals").iterdir()]
    assert len(originals) == 48, "every sample of so few is at some end"
    assert set(originals) == inside
    links = targets(visited.found.folder / "report/red.html", "a", "href")
    assert {p for p in links if "originals" in p.parts}


def test_what_changed_and_what_taught_it_stand_on_the_pages(visited: Visited):
    """The same data: nobody entered or left. The concept that was not asked before has nothing to compare."""
    triangle, red = (document(visited.found.folder / f"report/{name}.html").text for name in ("triangle", "red"))
    assert "Since first" in triangle
    assert "0 entered the top, 0 left it, 48 stayed. 0.0 % of the top is new data" in triangle
    assert "Since first" not in red
    for text in (triangle, red):
        assert all(words in text for words in ("Which source taught it", "Which label", "Which words of captions"))
    page = document(visited.store / "audits/first/report.html").text
    assert "Which source taught it" in page


def test_the_manifest_lists_what_the_audit_wrote(visited: Visited):
    there = {p.relative_to(visited.found.folder).as_posix() for p in visited.found.folder.rglob("*") if p.is_file()}
    assert there - set(visited.found.manifest["files"]) == {"manifest.json", "progress.json"}


def test_the_list_has_only_what_can_be_opened(visited: Visited, tmp_path):
    store = shutil.copytree(visited.store, tmp_path / "store")
    (store / "audits/first/manifest.json").unlink()
    (store / "audits/broken").mkdir()
    (store / "audits/broken/manifest.json").write_text("{")
    altered = shutil.copytree(store / "audits/second", store / "audits/altered") / "manifest.json"
    altered.write_text(re.sub('"finished": ?"[^"]*"', '"finished": "yesterday"', altered.read_text()))
    assert "yesterday" in altered.read_text()
    write_index(Store(str(store)))
    rows = document(store / "audits/index.html").all("tbody")[0].all("tr")
    assert [row.all("a")[0].text for row in rows] == ["second"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", rows[0].all("time")[0].text)
    shutil.rmtree(store / "audits")
    write_index(Store(str(store)))
    assert "No audit is finished." in document(store / "audits/index.html").text


def painted(visited: Visited) -> set[tuple[int, ...]]:
    """The colour that there is most of in each picture; enlarged with sharp edges, it is that colour on the page."""
    found = set()
    for path in (visited.found.folder / "report/thumbnails").iterdir():
        with Image.open(path) as image:
            (_, colour) = max(image.convert("RGB").getcolors(1 << 16) or [])
            found.add(colour)
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_page_without_a_complaint(visited: Visited, scheme: str):
    paper = {"light": (0xFC, 0xFC, 0xFB), "dark": (0x15, 0x18, 0x1B)}[scheme]
    for page in visited.pages():
        image, console = visit(page, 1200, scheme)
        assert console == [], f"{page.name}: the browser complains"
        assert image.convert("RGB").getpixel((1, 1)) == paper, "it is drawn in the other scheme"
        if page.name != "index.html":
            assert len(painted(visited) & colours(image)) > 5, f"{page.name}: the pictures are not there"


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")
def test_a_browser_that_misses_the_pictures_would_be_found_out(visited: Visited, tmp_path):
    alone = shutil.copy(visited.found.folder / "report/red.html", tmp_path / "red.html")
    image, _ = visit(Path(alone), 1200)
    assert len(painted(visited) & colours(image)) <= 1
