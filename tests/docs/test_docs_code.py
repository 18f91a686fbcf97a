"""Every command on the pages is read by what would run it; the cheap ones, and all Python and SQL, are run."""

import base64
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.method import METHODS, RECOMMENDED
from concept_trak.attribution.projector import PROJECTORS
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.data.files import list_files
from concept_trak.data.format import Findings
from concept_trak.data.shard import cut
from concept_trak.evaluation.published import BENCHMARKS
from jobs.audit import AuditRunConfig
from jobs.configure import configure_all
from tests.docs.pages import PAGES, ROOT, blocks, commands, text, verb, words

ALL = [(page, command) for page in PAGES for command in commands(page)]
OF_VERBS = [(page, command) for page, command in ALL if command.startswith("python -m jobs.")]

PYTHON = [page for page in PAGES if blocks(page, "python")]


def of(name: str) -> list[str]:
    return [command for _, command in OF_VERBS if command.startswith(f"python -m jobs.{name} ")]


def test_commands_are_of_make_pip_or_a_verb():
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(ALL) > 40
    for page, command in ALL:
        program, *rest = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{rest[0]}:", makefile, re.M), f"{page}: {command}: no such target"
        elif rest[:2] == ["-m", "pip"]:
            assert set(re.findall(r"\w+", rest[-1])) <= set(extras), f"{page}: {command}: no such extra"
        elif program == "sbatch":
            assert rest[0] == "infra/slurm/audit.sbatch", (
                f"{page}: {command}: run by no test"
            )  # tests/infra/test_slurm.py
            configure_all((AuditConfig, AuditRunConfig), "config", rest[1:])
        else:
            assert (program, rest[0]) == ("python", "-m"), f"{page}: {command}: run by no test"
            assert rest[1].startswith("jobs."), f"{page}: {command}: run by no test"


@pytest.mark.parametrize(("page", "command"), OF_VERBS, ids=lambda value: value[:60])
def test_a_command_is_accepted(page, command):
    module, arguments = words(command)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    config, *_ = verb(module).configure(arguments[:cut])
    if module == "jobs.audit":
        assert config.complete().concepts
    if "--" in arguments:
        assert verb("jobs.audit").configure(arguments[cut + 1 :])[0].audit


def test_every_row_of_the_papers_tables_is_accepted():
    rows = [shlex.split(line)[3:] for line in text("assets/paper.md").splitlines() if "-m jobs.published" in line]
    assert len(rows) >= 10
    given = [dict(word.split("=", 1) for word in row) for row in rows]
    assert {row["set"] for row in given} == set(BENCHMARKS)
    assert {row["method"] for row in given} <= set(METHODS)
    whole = {
        tuple(keys): row for keys, row in zip(given, rows, strict=True)
    }  # rows with the same keys differ in values
    assert all(verb("jobs.published").configure(row)[1].methods for row in whole.values())


def test_make_audit_runs_the_demo():
    assert "-m jobs.audit --config-name demo" in (ROOT / "Makefile").read_text()


def test_the_benchmark_command_is_accepted_and_its_models_are_shipped():
    from concept_trak.evaluation.suite import load_train_config, require_known_pairs

    command = next(c for c in of("benchmark") if "models=" in c)
    config, *_ = verb("jobs.benchmark").configure(words(command)[1])
    for path in config.models:
        require_known_pairs(config, load_train_config(str(ROOT / path)))


def test_ways_to_ask_are_answered(shown, small, capsys):
    """Concepts by words, pictures and a classifier, in one audit of few samples."""
    lines = [c for c in of("audit") if re.search("minus:|examples:|classifier:", c)]
    audit = verb("jobs.audit")
    asked = [audit.configure(words(line)[1])[0].concepts for line in lines]
    concepts = [replace(each, name=f"way-{i}", samples=1 + len(each.phrasings)) for i, (each,) in enumerate(asked)]
    config, run = audit.configure([*small, "audit=ways"])
    assert audit.run(replace(config, concepts=tuple(concepts)), run) == 0
    printed = capsys.readouterr().out
    assert "no gradient work" in printed, "the features are those of the other audit"
    assert all(f"way-{i}" in printed for i in range(len(lines)))


@pytest.mark.parametrize("name", ["status", "verify", "gc"])
def test_commands_that_read_the_store_run(shown, capsys, name):
    assert of(name), f"the pages show no jobs.{name}"
    for command in of(name):
        arguments = [word.replace("=results", f"={shown}/results") for word in words(command)[1]]
        assert verb(f"jobs.{name}")(arguments) == 0
        assert capsys.readouterr().out


def test_questions_to_a_finished_audit_are_answered(shown, tmp_path, capsys):
    assert len(of("ask")) >= 3
    for i, command in enumerate(of("ask")):
        asked = [word for word in words(command)[1] if not word.startswith(("store=", "out="))]
        assert verb("jobs.ask")([*asked, f"store={shown}/results", f"out={tmp_path}/{i}", "samples=1"]) == 0
        assert "question: " in capsys.readouterr().out
        assert pq.read_table(tmp_path / f"{i}/top.parquet").num_rows
        assert (tmp_path / f"{i}/report.html").stat().st_size


def test_the_first_components_command_writes_its_tables(tmp_path):
    few = (f"store={tmp_path}", f"model.path={ROOT}/assets/demo", "cluster=serial", "seeds=[0]", "probe.points=5",
           "probe.every=2")  # fmt: skip
    arguments = [
        word for word in words(of("components")[0])[1] if word.partition("=")[0] not in ("store", "model.path")
    ]
    assert verb("jobs.components")([*arguments, *few]) == 0
    for kind in ("components_groups", "components_top"):
        assert list((tmp_path / "components/demo" / kind).glob("red.parquet"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sql")])
def test_sql_reads_the_results(shown, monkeypatch, page):
    monkeypatch.chdir(shown)
    for query in blocks(page, "sql"):
        assert duckdb.sql(query).fetchall(), f"{page}: nothing comes of {query}"


def test_the_family_shown_is_the_file():
    shown = next(body for body in blocks("docs/extending.md", "python") if "PIPELINES" in body)
    assert shown in text("concept_trak/models/dit.py")


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables that code on the pages adds to, as they were, afterwards; the recommended row has few query states."""
    before = [(table, dict(table)) for table in (DIRECTIONS, PROJECTORS, METHODS)]
    row = METHODS[RECOMMENDED]
    METHODS[RECOMMENDED] = replace(row, query=replace(row.query, points=7, every=4))
    yield
    for table, kept in before:
        table.clear()
        table.update(kept)


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(shown, samples, tables, monkeypatch, capsys, page):
    """The blocks of a page one after another, with `images` and `captions` of a few samples at hand."""
    monkeypatch.chdir(shown)
    images, captions = samples
    names: dict[str, Any] = {"images": images, "captions": captions, "__name__": "page"}
    for body in blocks(page, "python"):
        exec(compile(body, page, "exec"), names)
    assert capsys.readouterr().out or page not in PRINTING
    if page == "docs/extending.md":
        require_examples_work(names, shown)


PRINTING = ("README.md", "docs/index.md", "docs/api.md", "docs/results.md", "docs/methods.md", "docs/models.md")


def require_examples_work(names: dict[str, Any], shown: Path) -> None:
    """The format of the page reads its rows, and the mapper runs a task of every stage's kind."""
    lines = [{"image": base64.b64encode(b"png").decode(), "caption": f"a red square {i}"} for i in range(3)]
    (shown / "lines").mkdir()
    (shown / "lines/a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    data = DataConfig(str(shown / "lines"))
    kind, listing = names["FORMAT"], list_files(data.uri)
    (source,) = kind.sources(listing, listing.files, data, None)
    rows = list(kind.rows(source, data, Findings()))
    assert [row.values["caption"] for row in rows] == [line["caption"] for line in lines]
    places = pa.table({"offset": [row.extent.offset for row in rows], "length": [row.extent.length for row in rows]})
    indexed = replace(source, rows=len(rows), index=places)
    images = [image for shard in cut(indexed, 2) for image in kind.images(shard, data)]
    assert [image.content for image in images] == [b"png"] * 3
    assert list(names["threads"]("stage", lambda settings: lambda task, attempt: task * settings, 3, [1, 2])) == [
        (1, 3),
        (2, 6),
    ]
