"""Every link, anchor, file, module and name on the pages is there, and the pages build a site that needs no network."""

import ast
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import FENCE, PAGES, ROOT, anchors, blocks, prose, text

MEASURED = tuple(f"assets/{path.name}" for path in sorted((ROOT / "assets").glob("*.md")))
FOLDERS = ("assets", "cluster", "concept_trak", "conf", "docs", "infra", "jobs", "serving", "tests")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target, anchor in LINK.findall(prose(page)):
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page} links to {target}, which is not there"
        if anchor:
            known = anchors(path.relative_to(ROOT).as_posix())
            assert anchor in known, f"{page} links to {target}#{anchor}; {target} has {sorted(known)}"


@pytest.mark.parametrize("page", [*PAGES, *MEASURED])
def test_files_and_modules_that_are_named_exist(page):
    named = re.findall(r"`([^`\s]+)`", prose(page))
    files = [
        name for name in named if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and "NAME" not in name
    ]
    modules = [name for name in named if re.fullmatch(r"(jobs|concept_trak)(\.\w+)+", name)]
    missing = [name for name in files if not (ROOT / name).exists()]
    missing += [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()
                and not (ROOT / name.replace(".", "/")).is_dir()]  # fmt: skip
    assert not missing, f"{page} names {missing}, which are not there"


def defined(file: str) -> set[str]:
    """The names that a file defines at its top, and `Class.method`."""
    names = set[str]()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_map_names_what_the_files_define():
    entries = re.findall(r"`([\w/]+\.py)` · `([\w.]+)`", text("docs/map.md"))
    assert len(entries) > 15
    missing = [f"{file} · {name}" for file, name in entries if name not in defined(file)]
    assert not missing, f"docs/map.md leads to names that are not there: {missing}"


def test_the_map_has_every_package():
    here = {f"{path.name}/" for path in (ROOT / "concept_trak").iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert {f"concept_trak/{name}" for name in here} <= set(re.findall(r"^\| `([\w/]+/)`", text("docs/map.md"), re.M))


def test_the_map_has_one_line_for_every_file():
    """Files of one line, such as an `__init__.py`, hold nothing that has to be found."""
    files = [
        path for package in ("concept_trak", "cluster", "serving", "jobs") for path in (ROOT / package).rglob("*.py")
    ]
    here = {path.relative_to(ROOT).as_posix() for path in files if len(path.read_text().splitlines()) > 10}
    lines = re.findall(r"^\| `([\w/]+\.py)` \|", text("docs/map.md"), re.M)
    assert sorted(lines) == sorted(here)


def test_every_page_is_in_the_navigation_and_in_the_readme():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    for page in PAGES[1:]:
        name = page.removeprefix("docs/")
        assert f": {name}\n" in navigation + "\n", f"mkdocs.yml: nav lacks {name}"
        assert f"({page})" in text("README.md"), f"the README's list of pages lacks {page}"


def test_the_readme_is_short():
    assert len(text("README.md").split()) <= 1600


def test_blocks_of_code_name_a_language_that_a_test_runs():
    languages = {kind for page in PAGES for kind, _ in FENCE.findall(text(page))}
    assert languages <= {"", "bash", "python", "sql"}, "a block of another language is run by no test"
    for page in PAGES:
        for body in blocks(page, "python"):
            compile(body, page, "exec")


class Loads(HTMLParser):
    """The addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        if address := given.get(LOADING.get(tag, "")):
            self.found.append(address)


def loads(html: str) -> list[str]:
    parser = Loads()
    parser.feed(html)
    return parser.found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it, with every warning an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def test_the_site_has_every_page_and_what_they_link_to(site):
    for page in PAGES[1:]:
        assert (site / page.removeprefix("docs/")).with_suffix(".html").is_file()
    assert (site / "source/concept_trak/attribution/method.py.html").is_file(), "sources are pages of the site"
    assert (site / "assets/results.html").is_file(), "so are the measured tables"


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        away = [address for address in loads(page.read_text()) if re.match(r"(\w+:)?//", address)]
        assert not away, f"{page.relative_to(site)} loads {away}"


def test_the_check_for_addresses_can_fail():
    assert loads('<script src="https://a/b.js"></script><img src="c.png"><a href="https://d">') == [
        "https://a/b.js",
        "c.png",
    ]


def test_the_api_reference_has_every_public_name():
    import concept_trak

    shown = set(re.findall(r"^::: concept_trak\.(\w+)$", text("docs/api.md"), re.M))
    assert shown == set(concept_trak.__all__)
