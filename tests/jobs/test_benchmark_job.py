"""The whole benchmark, small, on the model in the repository; and its refusals, before anything is computed."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.evaluation import baselines
from concept_trak.evaluation.baselines import GRADIENT_FREE, BaselineTask
from concept_trak.evaluation.benchmark import BenchmarkQueryTask, GradeTask
from concept_trak.evaluation.pipeline import dataset_title
from concept_trak.evaluation.suite import BenchmarkConfig, benchmark_audit, load_train_config
from concept_trak.evaluation.training.benchmark_models import train_command
from concept_trak.models import load_model
from jobs.benchmark import BenchmarkRunConfig, benchmark
from jobs.configure import CONF, main
from jobs.execute import ClusterConfig
from tests.configured import configure
from tests.few_steps import FEW
from tests.jobs.world import files_under
from tests.report.outline import parse

DEMO = CONF.parent / "assets/demo"
PAIRS = "pairs=[a red triangle,a blue square]"
# Two methods at three noise levels and at one, a held-out pair and one that is not, four queries of each cell.
SERIAL = BenchmarkRunConfig(ClusterConfig(kind="serial"))
SMALL = (
    f"models=[{DEMO}]", "method=[fit_trak,d_trak]", "cluster=serial", "rows=96", "queries=4", PAIRS,
    "methods.d_trak.train.times=[500]", "methods.d_trak.query.times=[500]", "dampings=[1,100,10000,inf]",
    "parameters=attn2.*weight", "projector.dim=1024",
)  # fmt: skip
# Measured with these settings: merit +0.38 for the reference, +0.03 for a random order of 96 samples, which is what is
# left of the worst of four cells by chance, and 0.00 for the reference with its sign flipped.
MARGIN = 0.15


def config(store: Path, *more: str) -> BenchmarkConfig:
    return configure(BenchmarkConfig, "benchmark", [f"store={store}", *SMALL, *more])


@pytest.fixture(scope="module", autouse=True)
def _baselines_draw_in_few_steps():
    """Of what a baseline finds with the pictures that it draws, no test here says anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "UNGUIDED", FEW)
        yield


@pytest.fixture(scope="module")
def done(_baselines_draw_in_few_steps, tmp_path_factory) -> Path:
    """The store of one small benchmark."""
    store = tmp_path_factory.mktemp("benchmark")
    assert benchmark(config(store), SERIAL) == 0
    return store


def ask(done: Path, query: str) -> list[tuple]:
    folder = done / "benchmarks/benchmark"
    connection = duckdb.connect()
    for name in ("leaderboard", "grades"):
        connection.execute(f"create view {name} as select * from '{folder}/{name}.parquet'")
    return connection.execute(query).fetchall()


def test_the_reference_finds_the_concept(done):
    merit = dict(ask(done, "select ranker, merit from leaderboard"))
    assert merit["fit_trak"] > merit["random"] + MARGIN, f"no better than a random order: {merit}"
    assert merit["fit_trak"] > merit["fit_trak, sign flipped"] + MARGIN, f"the sign is lost: {merit}"
    ((inside, outside),) = ask(done, "select gain_in, gain_out from leaderboard where ranker = 'fit_trak'")
    assert min(inside, outside) > MARGIN, "found on one side of the distribution only"


def test_lookup_is_perfect_where_captions_are_right(done):
    assert ask(done, "select distinct average_precision from grades where method = 'lookup'") == [(1.0,)]


def test_the_tables_have_every_ranking_and_grade(done):
    rankers = {(m, a, f) for m, a, f in ask(done, "select method, query_kind, flipped from leaderboard")}
    expected = {("fit_trak", "own"), ("d_trak", "own"), ("d_trak", "concept")}
    signed = {(*ranker, sign) for ranker in expected for sign in (0, 1)}
    assert rankers == signed | {(name, "none", 0) for name in GRADIENT_FREE}
    cells, queries, dampings, signs = 4, 4, 4, 2
    assert ask(done, "select count(*) from grades") == [
        (cells * queries * (len(expected) * dampings * signs + len(GRADIENT_FREE)),)
    ]
    best = ask(done, "select ranker from leaderboard order by merit desc limit 1")
    shown = parse((done / "benchmarks/benchmark/benchmark.html").read_text())
    first = shown.all("table", "leaderboard")[0].all("tbody")[0].all("tr")[0]
    assert first.all("th")[0].text == best[0][0]
    words = (done / "benchmarks/benchmark/benchmark.md").read_text()
    assert all(f"| {ranker} |" in words for ranker in ("fit_trak", "d_trak, concept query", "random"))
    evaluations = dict(ask(done, "select method, evaluations from leaderboard"))
    assert evaluations["fit_trak"] == METHODS["fit_trak"].train.evaluations
    assert evaluations["d_trak"] == 3, "not the cost of the row that ran, which has one state"
    assert evaluations["lookup"] == 0


def test_what_taught_a_concept_is_kept_for_every_ranking_at_its_own_damping(done):
    """As many as there are carriers, among the samples of the model; a ranking has nobody twice."""
    tops = f"'{done}/benchmarks/benchmark/tops.parquet'"
    counts = ask(
        done,
        f"""select t.method, t.query_kind, count(distinct sample_id), count(*), max(rank),
            round(96 * any_value(base_rate))
        from {tops} t join (select distinct concept, base_rate from grades) g using (concept)
        join leaderboard s on (s.method, s.query_kind, s.flipped, s.damping) = (t.method, t.query_kind, 0, t.damping)
        group by t.method, t.query_kind, t.concept""",
    )
    rankers = {("fit_trak", "own"), ("d_trak", "own"), ("d_trak", "concept")} | {
        (baseline, "none") for baseline in GRADIENT_FREE
    }
    assert {(method, query_kind) for method, query_kind, *_ in counts} == rankers
    assert len(counts) == 4 * len(rankers)
    assert all(len(set(numbers)) == 1 for _, _, *numbers in counts), f"not one for each carrier: {counts}"


def test_models_are_told_apart_by_what_they_were_taught(tmp_path):
    """And so stand in tables of their own."""
    made, usual = load_train_config(str(DEMO)), config(tmp_path)
    shuffled = replace(made, wrong=1 - 1 / len(made.kinds.pairs))
    assert dataset_title(usual, made) == "shapes3"
    assert dataset_title(usual, replace(made, steps=0)) == "shapes3, untrained"
    assert dataset_title(usual, replace(made, wrong=0.2)) == "shapes3, 20% of captions wrong"
    assert (
        dataset_title(replace(usual, truth="said"), shuffled) == "shapes3, captions shuffled, relevant is what is said"
    )
    assert dataset_title(replace(usual, unsaid="colour"), made) == "shapes3, colour unsaid"
    assert dataset_title(replace(usual, unsaid="each"), made) == "shapes3, one factor of each caption unsaid"


def test_captions_of_the_scored_samples_can_leave_a_factor_out(tmp_path):
    made = load_train_config(str(DEMO))
    audits = [benchmark_audit(config(tmp_path, f"unsaid={name}"), str(DEMO), made) for name in ("colour", "''")]
    part, whole = (duckdb.sql(f"select id, caption, colour from '{a.data.uri}/*.parquet' order by id") for a in audits)
    for (i, said, colour), (j, full, _) in zip(part.fetchall(), whole.fetchall(), strict=True):
        assert i == j
        assert said == full.replace(f"{colour} ", "")


def test_incomplete_captions_are_graded_by_whether_they_name_the_concept(tmp_path):
    """One method and one pair: lookup finds what captions name, and nothing else."""
    keys = (
        f"models=[{DEMO}]", "method=[fit_trak]", "cluster=serial", "rows=48", "queries=2", "pairs=[a blue square]",
        "dampings=[100]", "parameters=attn2.*weight", "projector.dim=256", "unsaid=each", f"store={tmp_path}",
        "methods.fit_trak.query.points=6", "methods.fit_trak.query.every=3",
    )  # fmt: skip
    assert benchmark(configure(BenchmarkConfig, "benchmark", list(keys)), SERIAL) == 0
    gains = {name: values for name, *values in ask(
        tmp_path, "select ranker, gain_named, gain_unnamed, unnamed_gap_low from leaderboard")}  # fmt: skip
    assert gains["lookup"][0] > 0.5
    assert abs(gains["lookup"][1]) < 0.25, "a caption names what it is to leave out"
    assert all(math.isfinite(value) for values in gains.values() for value in values)
    assert {"fit_trak", "words", "random"} <= gains.keys()
    folder = tmp_path / "benchmarks/benchmark"
    assert "| ranking | AP - base, caption names it | caption does not |" in (folder / "benchmark.md").read_text()
    assert "By what captions name" in parse((folder / "benchmark.html").read_text()).text


def test_a_second_run_computes_nothing(done, capsys):
    kept = {n: t for n, t in files_under(done).items() if not n.startswith("benchmarks/")}
    assert any(n.startswith("features/") for n in kept)
    before = {n: (done / f"benchmarks/benchmark/{n}.parquet").read_bytes() for n in ("grades", "leaderboard")}
    assert benchmark(config(done), SERIAL) == 0
    assert {n: t for n, t in files_under(done).items() if not n.startswith("benchmarks/")} == kept
    assert {n: (done / f"benchmarks/benchmark/{n}.parquet").read_bytes() for n in before} == before
    said = capsys.readouterr().out
    assert "featurize" not in said
    assert "Merit of fit_trak less that of the best baseline" in said
    assert f"{done}/benchmarks/benchmark/benchmark.html" in said


def test_what_cannot_change_a_grade_is_no_reason_to_grade_again(tmp_path):
    made = load_train_config(str(DEMO))

    def name(*more: str) -> str:
        return benchmark_audit(config(tmp_path, *more), str(DEMO), made).audit

    usual = name()
    same = ("reference=d_trak", "batch=7", "cluster=local", "name=other", "interval=5", "budget.rejects=0.5")
    assert {name(change) for change in same} == {usual}
    others = (
        "queries=5",
        "each=2",
        "unsaid=colour",
        "truth=said",
        "methods.d_trak.weight=squared_error",
        "dampings=[1]",
        "parameters=attn1",
        "methods.d_trak.unit=true",
        "projector.dim=64",
    )
    assert len({usual, *(name(change) for change in others)}) == 1 + len(others), "other grades under one name"


def test_work_that_fails_has_a_name_for_its_log():
    concept, row = Concept("red", prompt="red"), METHODS["trak"]
    items = (BenchmarkQueryTask(row, concept), GradeTask("trak", "own", row, (), (), ()), BaselineTask("pixels", (), 2))
    assert [item.label for item in items] == ["red", "trak-own", "pixels"]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs the job as the command line does, and returns what it says when it refuses."""

    def start_workers(cluster, budget):
        raise AssertionError("the mistake was found only after the workers were asked for")

    def run(*more: str) -> str:
        monkeypatch.setattr("jobs.execute.executor", start_workers)
        arguments = dict(a.split("=", 1) for a in (f"store={tmp_path / 'store'}", *SMALL, *more))
        monkeypatch.setattr(sys, "argv", ["jobs.benchmark", *(f"{k}={v}" for k, v in arguments.items())])
        with pytest.raises(SystemExit) as ended:
            main(benchmark, "benchmark", BenchmarkConfig, BenchmarkRunConfig)
        assert ended.value.code == 2
        (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert not (tmp_path / "store").exists(), "something is written although the run is refused"
        return message

    return run


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (f"models=[{CONF}]", "has no training.json; expected a folder that `python -m jobs.train` wrote"),
        (f"models=[{DEMO},{CONF}]", "has no training.json"),
        ("models=[]", "models is empty; expected folders that `python -m jobs.train` wrote"),
        ("reference=trak", "reference='trak' is not one of the compared methods: fit_trak, d_trak"),
        ("truth=maybe", "truth='maybe'; expected one of: shown, said, both"),
        ("unsaid=size", "expected shape or colour or each, and a model trained with captions that lose a factor"),
        ("+variants.late.row=fit_trk", "variants.late.row='fit_trk' is not known (did you mean fit_trak?)"),
        ("+variants.late={row: fit_trak, train: {tims: [900]}}", "variants.late: unknown key train.tims (did you mean"),
        ("+variants.d_trak.row=fit_trak", "variants.d_trak: a row has this name; choose another"),
        ("queries=1", "queries=1; expected at least 2: the even queries decide the damping"),
        ("each=0", "each=0; expected at least 1"),
        ("dampings=[]", "dampings=[]; expected at least one positive number, or inf"),
        ("dampings=[1,0]", "dampings=[1.0, 0.0]; expected at least one positive number"),
        (
            "pairs=[a purple triangle]",
            "'a purple triangle' is not a pair of shapes3; expected some of: a red tr",
        ),
        ("method=[nope,trak]", "method=nope is not known; expected one of: "),
        ("querries=3", "unknown key querries (did you mean queries?)"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(refused, more, says):
    assert says in refused(more)


def test_a_training_record_that_is_no_record_is_refused(refused, tmp_path):
    model = shutil.copytree(DEMO, tmp_path / "model")
    record = json.loads((model / "training.json").read_text())
    record["settings"]["colour"] = "mauve"
    (model / "training.json").write_text(json.dumps(record))
    assert "training.json is not a file of `python -m jobs.train` (unknown key colour" in refused(f"models=[{model}]")


@pytest.mark.parametrize("folder", sorted((DEMO.parent / "benchmark").iterdir()), ids=lambda folder: folder.name)
def test_a_shipped_model_is_what_its_folder_says(folder):
    """It loads with the benchmark's parameters, repeats its command, and is small enough to ship."""
    made, usual = load_train_config(str(folder)), BenchmarkConfig()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 6_000_000
    model = load_model(str(folder), parameters=usual.parameters)
    assert sum(p.numel() for p in model.parameters.values()) > 1_200_000
    assert model.resolution == made.side
    said = json.loads((folder / "training.json").read_text())
    assert train_command(made) == said["command"], "the settings and the command of training.json differ"
    assert said["judge_accuracy"] > 0.99, "who judged it could not tell what an image shows"
    drawn = said["shows_both_factors"]["guidance 1"]
    right = [share for text, share in drawn.items() if text not in said["held_out"]]
    # Some eights and nines are drawn as other digits: measured 0.81 to 1.00. A fifth of the captions teach other pairs:
    # there what is asked comes more often than not, measured 0.56 to 0.88.
    enough = 0.5 if made.wrong else {"digits": 0.8}.get(made.set, 0.9)
    assert min(right) > enough, f"it does not draw what it is asked: {drawn}"
