"""The README and the pages of docs/, taken apart: their blocks of code, commands, tables, headings and links."""

import ast
import re
import shlex
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jobs.configure import configure_all

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text()


def prose(page: str) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", text(page))


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language; "" is those that name none."""
    return [body for kind, body in FENCE.findall(text(page)) if kind == language]


def commands(page: str) -> list[str]:
    """Every command of the page's bash blocks, continuation lines joined, comments cut off."""
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def section(page: str, heading: str) -> str:
    """What follows a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text(page), re.M)
    assert found, f"{page} has no heading {heading!r}"
    rest = text(page)[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", FENCE.sub(lambda m: " " * len(m[0]), rest), re.M)
    return rest[: end.start()] if end else rest


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head; cells without backticks around them."""
    lines = [line for line in section(page, heading).splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> list[str]:
    """What a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as both MkDocs and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


class Verb(NamedTuple):
    """What a module of jobs/ does when it is run: `main(run, default, *schemas)` at its end."""

    run: Any
    default: str
    schemas: tuple[type, ...]

    def configure(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        return configure_all(self.schemas, self.default, arguments)

    def __call__(self, arguments: Sequence[str]) -> int:
        return self.run(*self.configure(arguments))


@cache
def verb(module: str) -> Verb:
    loaded = import_module(module)
    tree = ast.parse(Path(str(loaded.__file__)).read_text())
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "main")
    run, default, *schemas = (ast.unparse(argument) for argument in call.args)
    return Verb(getattr(loaded, run, None), ast.literal_eval(default), tuple(getattr(loaded, s) for s in schemas))


def words(command: str) -> tuple[str, list[str]]:
    """The module and the arguments of `python -m module ...`."""
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag) == ("python", "-m"), f"{command}: not run by any test"
    return module, arguments
