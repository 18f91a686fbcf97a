"""Files of the repository that the pages link to, as pages of the site, so that it can be read without a checkout.

A page of `docs/` links to `../concept_trak/config.py`, which leads somewhere in a checkout. The site gets that file as
a page `source/concept_trak/config.py.md`, a Markdown file of the repository as it is, and a picture as a file; links
are rewritten to where these are. MkDocs calls the two functions (`hooks` in mkdocs.yml).
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")
PICTURES = (".png", ".jpg", ".svg")


def on_files(files: Files, config: Any) -> Files:
    """Add every file of the repository that a page of the site links to, and what those pages link to."""
    todo = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    added = set[str]()
    while todo:
        page = todo.pop()
        for path in linked(page) if page.endswith(".md") else ():
            if not path.startswith("docs/") and path not in added:
                added.add(path)
                todo.append(path)
                files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to the repository's files, as links to their places in the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    origin = f"docs/{here}" if (ROOT / "docs" / here).is_file() else here

    def moved(link: re.Match[str]) -> str:
        path = resolved(origin, link[2])
        if path is None:
            return link[0]
        return f"{link[1]}{posixpath.relpath(place(path), posixpath.dirname(here) or '.')}{link[3] or ''}"

    return LINK.sub(moved, markdown)


def linked(page: str) -> Iterator[str]:
    """The files that a page links to, each as its path in the repository."""
    paths = (resolved(page, link[2]) for link in LINK.finditer((ROOT / page).read_text()))
    return (path for path in paths if path is not None)


def resolved(page: str, target: str) -> str | None:
    """A link's target as a path in the repository; None where there is no such file."""
    path = os.path.normpath(posixpath.join(posixpath.dirname(page), target))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith((".md", *PICTURES)) else f"source/{path}.md"


def _file(path: str, config: Any) -> File:
    if path.endswith((".md", *PICTURES)):
        return File.generated(config, place(path), abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
    language = Path(path).suffix.removeprefix(".") or "text"
    text = (
        f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n~~~~~~~~{language}\n{(ROOT / path).read_text()}~~~~~~~~\n"
    )
    return File.generated(config, place(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV)
