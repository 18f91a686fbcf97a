"""The tables of the pages hold what the code has: methods, schemas, verbs, exit codes, keys, reasons."""

import dataclasses
import json
import re
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.projector import PROJECTORS
from tests.docs.pages import ROOT, blocks, code, section, table, text, verb

RESULTS = "docs/results.md"
WORDS = {"vector": "list<float32>"}
FILES = {  # the schema of a file that an audit has written, by its heading
    "top.parquet": "audits/demo/top.parquet",
    "rejects.parquet": "audits/demo/rejects.parquet",
    "plan.parquet": "audits/demo/plan.parquet",
    "scores/shard.parquet": "audits/demo/caption_trak/scores/*.parquet",
    "by_source.parquet": "audits/demo/caption_trak/by_source.parquet",
    "by_label.parquet": "audits/demo/caption_trak/by_label.parquet",
    "by_word.parquet": "audits/demo/caption_trak/by_word.parquet",
    "sums/shard.parquet": "audits/demo/caption_trak/sums/*.parquet",
    "queries/concept.parquet": "audits/demo/caption_trak/queries/*.parquet",
    "parts/shard.parquet": "features/*/parts/*.parquet",
}
KINDS = {  # columns and the words of their types, by the heading of a table that takes long to make
    "joint.parquet": "concept_trak.audit.layer_scores:JOINT",
    "diff-before.parquet": "concept_trak.audit.diff:MOVE_KINDS",
    "diff-before.summary.parquet": "concept_trak.audit.diff:SUMMARY_KINDS",
    "grades.parquet": "concept_trak.evaluation.benchmark:GRADE_COLUMNS",
    "leaderboard.parquet": "concept_trak.evaluation.benchmark:LEADERBOARD_COLUMNS",
    "tops.parquet": "concept_trak.report.benchmark_page:TOPS",
    "counterfactual.parquet": "concept_trak.report.counterfactual_page:KINDS",
    "components_groups/concept.parquet": "concept_trak.components.groups:GROUPS",
    "components_top/concept.parquet": "concept_trak.components.groups:TOP",
    "components_doses.parquet": "concept_trak.components.dose_response:DOSES",
    "components_calibration.parquet": "concept_trak.components.calibration:CALIBRATION",
}


def word(kind: pa.DataType) -> str:
    """An Arrow type as the pages call it."""
    if pa.types.is_list(kind):
        return f"list<{word(kind.value_type)}>"
    if pa.types.is_fixed_size_binary(kind):
        return "fixed_size_binary"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def documented(heading: str) -> dict[str, str]:
    """The columns of a table in results.md; `<concept>` is the concept `red`, `<column>` each of its two."""
    columns = {}
    for name, kind, _ in table(RESULTS, heading):
        (column,) = code(name)
        both = ["red", "red~plain"] if "<column>" in column else [""]
        columns |= {column.replace("<concept>", "red").replace("<column>", each): kind for each in both}
    return columns


@pytest.mark.parametrize("heading", FILES)
def test_a_schema_is_that_of_the_file(shown, heading):
    labels = dict.fromkeys(("shape", "colour"), "string") if heading == "top.parquet" else {}
    path = next(iter((shown / "results").glob(FILES[heading])))
    written = {field.name: word(field.type) for field in pq.read_schema(path)}
    assert {**documented(heading), **labels} == written


@pytest.mark.parametrize("heading", KINDS)
def test_a_schema_is_that_of_the_code(heading):
    module, _, name = KINDS[heading].partition(":")
    kinds = {column: WORDS.get(kind, kind) for column, kind in getattr(import_module(module), name).items()}
    if heading == "grades.parquet":
        kinds = {"set": "string", "model": "string", **kinds}
    assert documented(heading) == kinds


def test_every_table_of_the_page_is_compared():
    parts = re.findall(r"^### (\S+)$", text(RESULTS), re.M)
    assert set(parts) == FILES.keys() | KINDS.keys()


@pytest.mark.parametrize("name", ["manifest.json", "metrics.json"])
def test_the_keys_of_the_json_files(shown, name):
    written = json.loads((shown / "results/audits/demo" / name).read_text())
    rows = {code(key)[0]: meaning for key, meaning in table(RESULTS, name)}
    assert rows.keys() == written.keys()
    for key, meaning in rows.items():
        inner = set(code(meaning)) - {"truth", "scores=all", "<method>", "<method>~plain"}
        assert inner <= set(keys(written[key])), f"{name}: {key} has {set(keys(written[key]))}"


def keys(value: object) -> list[str]:
    """The keys of a JSON value at any depth."""
    if isinstance(value, dict):
        return [*value, *(key for inner in value.values() for key in keys(inner))]
    return [key for inner in value for key in keys(inner)] if isinstance(value, list) else []


def test_the_files_shown_exist(shown):
    entries = re.findall(r"^(results/[^\s,]+(?:, [^\s,]+)*)", blocks(RESULTS, "")[0], re.M)
    assert len(entries) > 10
    for entry in entries:
        first, *others = entry.split(", ")
        for path in (first, *(str(Path(first).parent / other) for other in others)):
            pattern = re.sub(r"<\w+>", "*", path.replace("<audit>", "demo").replace("<method>", "caption_trak"))
            assert list(shown.glob(pattern)), f"{path} is not what an audit leaves"


@pytest.mark.parametrize(
    ("page", "heading"), [("README.md", "The idea: a direction, pulled back"), ("docs/methods.md", "Every row")]
)
def test_the_table_of_methods_is_the_table(page, heading):
    assert [code(row[0])[0] for row in table(page, heading)] == list(METHODS)


def test_the_costs_of_methods():
    assert {code(row[0])[0]: int(row[4]) for row in table("docs/methods.md", "Every row")} == {
        name: method.train.evaluations for name, method in METHODS.items()
    }


def test_every_direction_is_defined_on_the_page():
    names = {"sign of the prediction": "prediction_sign"}
    rows = [row[0] for row in table("docs/methods.md", "Directions")]
    assert {names.get(row, row.replace(" ", "_")) for row in rows} == set(DIRECTIONS)


def test_every_projector_is_on_the_page():
    assert {code(row[0])[0] for row in table("docs/methods.md", "The projector")} == set(PROJECTORS)


def test_every_verb_is_on_the_page():
    verbs = {
        f"jobs.{path.stem}"
        for path in (ROOT / "jobs").glob("[!_]*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    assert {code(row[0])[0] for row in table("docs/cli.md", "Command line")} == verbs


def test_every_field_of_a_concept_is_on_the_page():
    named = {field for row in table("docs/concepts.md", "Every field") for field in code(row[0])}
    assert named == {field.name for field in dataclasses.fields(Concept)}


def test_keys_on_the_pages_are_keys():
    """Every `group.key` in prose is a key of an audit."""
    known = {key for schema in verb("jobs.audit").schemas for key in dotted(schema)}
    for page in ("docs/cli.md", "docs/data.md", "docs/models.md", "docs/cluster.md", "docs/methods.md"):
        named = re.findall(r"`((?:data|model|cluster|budget|feature|projector)\.[\w.]+)[`=]", text(page))
        unknown = [key for key in named if key not in known]
        assert not unknown, f"{page}: {unknown} are no keys"


def dotted(schema: type, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(schema):
        names.append(f"{prefix}{field.name}")
        if dataclasses.is_dataclass(field.type):
            names += dotted(field.type, f"{prefix}{field.name}.")
    return names


def test_the_reasons_of_rejects_are_those_of_the_code():
    listed = {reason for row in table("docs/data.md", "Rejects") for reason in code(row[0])}
    source = "\n".join(path.read_text() for path in (ROOT / "concept_trak").rglob("*.py"))
    assert all(f'"{reason}"' in source for reason in listed)


def test_the_papers_figures_on_the_page_are_those_of_the_table():
    """The benchmark's table on the page repeats numbers of assets/results.md; it must not drift from them."""
    measured = text("assets/results.md")
    for row in table("docs/methods.md", "Which method to believe"):
        for cell in row[1:]:
            assert cell in measured, f"{row[0]}: {cell} is not in assets/results.md"
    assert section("README.md", "Which method to believe")
