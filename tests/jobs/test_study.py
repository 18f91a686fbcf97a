"""A study says of every change what it does, beside the row that is changed; and rows given as changes of others."""

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from concept_trak.attribution.method import METHODS, method_settings
from concept_trak.evaluation.study import RUNS, varied_benchmark, varied_rows
from concept_trak.evaluation.suite import (
    BenchmarkConfig,
    build_variants,
    change_text,
    compared_methods,
    variant_change,
    with_changes,
)
from concept_trak.report.publish_evaluation import run_study
from concept_trak.report.table_page import TablePage, TextTable, as_markdown, render_tables
from jobs.benchmark import BenchmarkRunConfig, spread
from jobs.configure import CONF
from jobs.execute import ClusterConfig
from tests.configured import configure
from tests.report.outline import parse

DEMO = CONF.parent / "assets/demo"
SERIAL = BenchmarkRunConfig(ClusterConfig(kind="serial"))
SMALL = (
    f"models=[{DEMO}]", "method=[fit_trak]", "cluster=serial", "rows=16", "queries=2", "pairs=[a red triangle]",
    "methods.fit_trak.train.times=[500]", "methods.fit_trak.query.points=6", "methods.fit_trak.query.every=4",
    "dampings=[10,inf]", "parameters=attn2.*weight", "projector.dim=64", "name=small",
)  # fmt: skip
VARIANTS = {
    "same": {"row": "fit_trak", "query": {"strength": 1.0}},
    "late": {"row": "fit_trak", "train": {"times": [900]}},
}


def test_a_variant_is_its_row_but_for_what_it_changes():
    found = build_variants({"late": {"row": "concept_trak", "train": {"guidance": 2.0}, "unit": False}}, METHODS)[
        "late"
    ]
    row = METHODS["concept_trak"]
    assert found == replace(row, train=replace(row.train, guidance=2.0), unit=False)
    assert with_changes(method_settings(row), {}) == method_settings(row)


def test_a_change_reads_as_on_the_command_line():
    assert change_text({"train": {"times": [300], "noise": "shared"}, "unit": False}) == (
        "train.times=[300] train.noise=shared unit=False"
    )


def test_the_study_of_the_project_changes_one_thing_at_a_time():
    config = configure(BenchmarkConfig, "study", [])
    rows = compared_methods(config)
    for name, given in config.variants.items():
        row, found = rows[given["row"]], rows[name]
        assert found != row, f"{name} changes nothing"
        assert change_text(variant_change(given)).count("=") <= 2, (
            f"{name} changes more than one thing and what it needs"
        )
    assert len({repr(rows[name]) for name in rows}) == len(rows), "two names for one row"
    for change in RUNS:
        varied_benchmark(config, varied_rows(config, RUNS), change)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A study with a change that is none, one that is, and a run whose setting decides nothing."""
    store = tmp_path_factory.mktemp("study")
    config = replace(configure(BenchmarkConfig, "benchmark", [f"store={store}", *SMALL]), variants=VARIANTS)
    page = run_study(config, spread(SERIAL), ({"batch": 7},))
    assert page
    return store / "benchmarks/small"


@pytest.mark.soak
def test_what_changes_nothing_makes_no_difference(done):
    lines = duckdb.sql(f"select method, merit, gap_low, gap_high, damping from '{done}/study.parquet'").fetchall()
    found = {method: rest for method, *rest in lines}
    assert set(found) == {"fit_trak", "same", "late", "fit_trak batch=7", "random", "lookup"}
    for name in ("same", "fit_trak batch=7"):
        assert found[name] == found["fit_trak"], f"{name}: another result though nothing differs"
    assert found["late"][0] != found["fit_trak"][0]
    assert found["fit_trak"][1:3] == [0, 0], "a row differs from itself"


def test_the_page_has_every_line_with_what_differs(done):
    compared, curves = parse((done / "study.html").read_text()).all("table", "numbers")
    rows = [[cell.text for cell in row.all("td")] for row in compared.all("tbody")[0].all("tr")]
    names = [row.all("th")[0].text for row in compared.all("tbody")[0].all("tr")]
    assert names == ["fit_trak", "same", "late", "fit_trak batch=7", "random", "lookup"]
    assert [row[0] for row in rows[:4]] == ["", "query.strength=1.0", "train.times=[900]", "batch=7"]
    assert len(curves.all("tbody")[0].all("tr")) == 4
    assert "| late | train.times=[900] |" in (done / "study.md").read_text()


def test_a_study_of_nothing_is_refused():
    config = configure(BenchmarkConfig, "benchmark", ["cluster=serial"])
    with pytest.raises(ValueError, match=r"variants is empty; a study needs at least one"):
        varied_rows(config, RUNS)


def test_a_sheet_is_safe_whatever_stands_in_it():
    hostile = '<script>alert(1)</script> {{ 7 * 7 }} | & "'
    page = TablePage(
        hostile, hostile, (TextTable(hostile, hostile, (hostile, "n"), ((hostile, "1"),)),), ((hostile, hostile),)
    )
    html = render_tables(page)
    assert not parse(html).all("script")
    assert parse(html).all("h1")[0].text == " ".join(hostile.split())
    assert html == render_tables(page)
    assert "\\|" in as_markdown(page)
