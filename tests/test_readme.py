"""Everything the README shows is run: commands, SQL and Python, on a small audit of the shipped model."""

import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import duckdb
import pytest

from concept_trak.attribution.method import METHODS
from concept_trak.config import AuditConfig
from concept_trak.evaluation.published import SETS, PublishedConfig
from jobs.audit import audit
from jobs.benchmark import BenchmarkConfig, require_pairs, trained
from jobs.components import ComponentsConfig, components
from jobs.configure import configure
from jobs.diff import DiffConfig
from jobs.shapes import ShapesConfig, shapes
from jobs.status import StatusConfig, status
from jobs.submit import SubmitConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# What makes the README's commands small enough for a test, and keeps them away from the user's own results.
SMALL = (
    "cluster=serial", "projector.dim=64", "data.shard_rows=16", "methods.caption_trak.train.times=[300,700]",
    "methods.caption_trak.query.points=11", "methods.caption_trak.query.every=4",
)  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; "" is those that name none."""
    parts = README.split("```")[1::2]
    return [body for kind, _, body in (part.partition("\n") for part in parts) if kind == language]


def commands() -> list[str]:
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def shown(tmp_path_factory) -> Path:
    """A folder with `results/` as the README's commands leave it."""
    here = tmp_path_factory.mktemp("readme")
    assert shapes(ShapesConfig(out=str(here / "results/shapes"), rows=32, files=2)) == 0
    here_too = (f"store={here}/results", f"data.uri={here}/results/shapes", "method=caption_trak")
    one = "concepts=[{name: red, prompt: a red triangle, without_prompt: a triangle, truth: {colour: red}, samples: 2}]"
    config = configure(AuditConfig, "config", ["--config-name", "demo", *here_too, *SMALL, one])
    assert audit(config) == 0
    return here


def test_every_command_is_one_the_project_has():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), f"{command}: no such target"
        else:
            assert words[:2] == ["python", "-m"], f"{command}: not run by any test"


@pytest.mark.parametrize("command", [c for c in commands() if "jobs.audit" in c])
def test_audit_commands_are_accepted(command):
    config = configure(AuditConfig, "config", shlex.split(command)[3:])
    assert config.complete().concepts


def test_other_ways_to_ask_are_answered(shown, capsys):
    """The README's concepts by words, pictures and a classifier, in one audit of few samples."""
    lines = [c for c in commands() if re.search("minus:|examples:|classifier:", c)]
    found = [configure(AuditConfig, "config", shlex.split(line)[3:]).concepts for line in lines]
    here = ("--config-name", "demo", f"store={shown}/results", f"data.uri={shown}/results/shapes", "audit=ways")
    config = configure(AuditConfig, "config", [*here, "method=caption_trak", *SMALL])
    asked = [replace(one, name=f"way-{i}", samples=1 + len(one.phrasings)) for i, (one,) in enumerate(found)]
    assert audit(replace(config, concepts=tuple(asked))) == 0
    said = capsys.readouterr().out
    for words in ("(minus 'red', written out)", "what the pictures in", "takes for 'red'", "2 of 2 shards are done"):
        assert words in said


def test_the_benchmark_command_is_accepted_and_its_models_are_shipped():
    (command,) = [c for c in commands() if "jobs.benchmark" in c]
    config = configure(BenchmarkConfig, "benchmark", shlex.split(command)[3:])
    for path in config.models:
        require_pairs(config, trained(str(ROOT / path)))


def test_the_components_command_writes_its_tables(tmp_path):
    (command,) = [c for c in commands() if "jobs.components" in c]
    small = (f"store={tmp_path}", f"model.path={ROOT}/assets/demo", "cluster=serial", "seeds=[0]", "probe.points=5",
             "probe.every=2")  # fmt: skip
    said = [w for w in shlex.split(command)[3:] if w.partition("=")[0] not in ("store", "model.path")]
    assert components(configure(ComponentsConfig, "components", [*said, *small])) == 0
    for table in ("components_groups", "components_top"):
        assert list((tmp_path / "components/demo" / table).glob("red.parquet"))


def test_every_row_of_the_papers_tables_is_accepted():
    text = (ROOT / "assets/paper.md").read_text()
    rows = [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("python -m jobs.published")]
    assert len(rows) >= 10
    said = [dict(word.split("=", 1) for word in row) for row in rows]
    assert {one["set"] for one in said} == set(SETS)
    assert {one["method"] for one in said} <= set(METHODS)
    whole = {tuple(one): row for one, row in zip(said, rows, strict=True)}  # rows with the same keys differ in values
    assert all(configure(PublishedConfig, "published", row).methods for row in whole.values())


def test_make_audit_runs_the_demo():
    recipe = (ROOT / "Makefile").read_text()
    assert "-m jobs.audit --config-name demo" in recipe


def test_status_command(shown, capsys):
    assert any("jobs.status" in c for c in commands())
    assert status(StatusConfig(store=f"{shown}/results")) == 0
    assert "demo: finished" in capsys.readouterr().out


def test_submit_and_diff_commands_are_accepted():
    found = [shlex.split(c, comments=True)[2:] for c in commands() if "jobs.submit" in c or "jobs.diff" in c]
    assert {words[0] for words in found} == {"jobs.submit", "jobs.diff"}, "the README no longer shows both"
    for words in found:
        own, _, audits = " ".join(words[1:]).partition(" -- ")
        kind = SubmitConfig if words[0] == "jobs.submit" else DiffConfig
        assert configure(kind, words[0].removeprefix("jobs."), own.split())
        assert not audits or configure(AuditConfig, "config", audits.split()).audit


def test_verify_and_gc_commands(shown, capsys):
    for words in (shlex.split(c)[2:] for c in commands() if "jobs.verify" in c or "jobs.gc" in c):
        module, arguments = words[0], [w.replace("=results", f"={shown}/results") for w in words[1:]]
        verb = import_module(module)
        kind, run = (verb.VerifyConfig, verb.verify) if module == "jobs.verify" else (verb.GcConfig, verb.gc)
        assert run(configure(kind, module.removeprefix("jobs."), arguments)) == 0
        assert capsys.readouterr().out


def test_sql_reads_the_results(shown, monkeypatch):
    monkeypatch.chdir(shown)
    ranked, taught = (duckdb.sql(query).fetchall() for query in blocks("sql"))
    assert [row[2] for row in ranked] == [1, 2, 3], "three ranks of one concept and method"
    assert [row[2] for row in taught] == [16, 16], "two sources"


def test_python_reads_the_features(shown, capsys):
    for code in blocks("python"):
        exec(compile(code.replace("/absolute/path/to/results", f"{shown}/results"), "README.md", "exec"), {})
    assert "(16, 64)" in capsys.readouterr().out


def test_the_files_shown_exist(shown):
    listed = re.findall(r"^(results/\S+)", "\n".join(blocks("")), re.M)
    assert len(listed) > 6
    for pattern in listed:
        path = pattern.rstrip(",").replace("<audit>", "demo").replace("<method>", "caption_trak")
        path = re.sub(r"<\w+>", "*", path)
        assert list(shown.glob(path.rstrip("/"))), f"{pattern} is not what an audit leaves"


def test_the_table_of_methods_is_the_table():
    table = README[README.index("| row | training side |") :].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(METHODS)


def test_files_it_points_at_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README points at {target}, which is not there"


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "infra/README.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
