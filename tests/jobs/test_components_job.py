"""The job: units in any order and on any executor, a lost file, an edit that is a model, and what is refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from safetensors.torch import load_file

from cluster.serial import Serial
from concept_trak.audit.mapper import Stopped, in_order
from jobs.components import ComponentsConfig, components
from jobs.execute import ExecutorMapper, RunConfig
from tests.configured import configure_both
from tests.jobs.world import World, files_under
from tests.report.outline import parse

RED = "{name: red, prompt: a red triangle, without_prompt: a triangle}"
BLUE = "{name: blue, prompt: a blue circle, without_prompt: a circle}"


@dataclass(frozen=True)
class Doubled:
    number: int
    label: str = "doubled"
    samples: int = 0


class Doubling:
    def __init__(self, settings: None) -> None: ...

    def __call__(self, task: Doubled, attempt: object) -> int:
        return 2 * task.number


def run(world: World, store: Path, *more: str) -> int:
    usual = (f"store={store}", f"model.path={world.root}/pixels", f"concepts=[{RED}]", "seeds=[0,1]", "probe.points=5",
             "probe.every=2", "cluster=serial", "top=5")  # fmt: skip
    said = {k: v for k, v in (a.split("=", 1) for a in (*usual, *more))}
    return components(*configure_both(ComponentsConfig, "components", [f"{k}={v}" for k, v in said.items()]))


def asked(sql: str) -> list[tuple]:
    found = duckdb.sql(sql)
    assert found is not None
    return found.fetchall()


def groups(store: Path) -> list[tuple]:
    where = f"'{store}/components/demo/components_groups/*.parquet'"
    return asked(f"SELECT * FROM {where} ORDER BY concept, tensor, row NULLS FIRST")


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("plain")
    assert run(world, store) == 0
    return store


def test_all_stages_run_on_one_executor(monkeypatch):
    executors = []
    monkeypatch.setattr("jobs.execute.executor", lambda cluster, budget: executors.append(Serial()) or executors[-1])
    mapper, tasks = ExecutorMapper(RunConfig()), [Doubled(1), Doubled(2)]
    assert [in_order(tasks, mapper(stage, Doubling, None, tasks)) for stage in ("measure", "summarize")] == [[2, 4]] * 2
    assert len(executors) == 1, "the processes of one stage cannot go on in the next"


def test_the_tables_are_read_by_strangers(plain):
    where = f"'{plain}/components/demo/components_top/*.parquet'"
    found = asked(f'SELECT "end", count(*), min(rank), max(rank) FROM {where} GROUP BY 1 ORDER BY 1')
    assert found == [("negative", 5, 1, 5), ("positive", 5, 1, 5)]
    assert {row[2] for row in groups(plain)} == {"tensor", "head", "row"}


def test_a_unit_that_is_lost_is_measured_again_and_alone(world, plain, capsys):
    """What a killed run leaves is some of the units; the next measures the others, and the tables are the same."""
    before, tables = files_under(plain), groups(plain)
    first, second = sorted((plain / "components/units").iterdir())
    data = first.read_bytes()
    first.unlink()
    assert run(world, plain) == 0
    assert "2 trajectories, 1 of them to measure" in capsys.readouterr().out
    assert first.read_bytes() == data
    assert groups(plain) == tables
    name = second.relative_to(plain).as_posix()
    assert files_under(plain)[name] == before[name], "what was there is not touched"


def test_how_the_work_is_cut_does_not_matter(world, plain, tmp_path):
    """Seeds in another order, one at a time, another concept beside it."""
    assert run(world, tmp_path, "seeds=[1]") == 0
    assert run(world, tmp_path, "seeds=[1,0]", f"concepts=[{BLUE},{RED}]") == 0
    ours = [row for row in groups(tmp_path) if row[0] == "red"]
    assert ours == groups(plain)


def test_what_is_to_stay_is_measured_once_for_all_that_differ_in_the_condition_without(world, tmp_path, capsys):
    """A price does not look at the condition without the concept, and neither does its file's name."""
    other = "{name: other, prompt: a red triangle, without_prompt: red}"
    more = ("edit.choice.against=reach", f"concepts=[{BLUE}]", "seeds=[0]")
    assert run(world, tmp_path, *more, f"references=[{RED}]") == 0
    assert "2 trajectories, 2 of them to measure" in capsys.readouterr().out
    assert run(world, tmp_path, *more, f"references=[{other}]") == 0
    assert "2 trajectories, all measured" in capsys.readouterr().out


def test_a_file_cut_short_is_named(world, plain, tmp_path):
    store = shutil.copytree(plain, tmp_path / "store")
    unit = next((store / "components/units").iterdir())
    unit.write_bytes(unit.read_bytes()[:100])
    with pytest.raises(Stopped, match=f"{unit.name} is not as it was written") as stopped:
        run(world, store)
    assert stopped.value.exit_code == 2


def test_an_edit_is_a_model_with_its_record(world, plain, tmp_path):
    out = tmp_path / "edited"
    assert run(world, plain, f"edit.out={out}", "edit.choice.ratio=0.01", "edit.factor=0.5") == 0
    record = json.loads((out / "edit.json").read_text())
    before, after = (load_file(d / "unet/diffusion_pytorch_model.safetensors") for d in (world.root / "pixels", out))
    changed = {n: int((before[n] != after[n]).sum()) for n in before}
    assert {n: k for n, k in changed.items() if k} == record["by_tensor"]
    assert sum(changed.values()) == record["edited"]
    assert record["concept"]["prompt"] == "a red triangle"
    for name, x in after.items():
        assert ((x == before[name]) | (x == before[name] / 2)).all()
    assert run(world, tmp_path / "of_it", f"model.path={out}") == 0, "it opens like any model"
    with pytest.raises(ValueError, match="exists; an edit overwrites nothing"):
        run(world, plain, f"edit.out={out}")


def test_the_published_choice_on_a_relative_of_stable_diffusion(world, tmp_path):
    """The feed-forward matrices alone, and of every row the whole part of the ratio at most (CAD's own setting)."""
    out, ratio = tmp_path / "edited", 0.1
    more = ("model.path=" + f"{world.root}/latents", "model.parameters=ff", "edit.choice.by=per_row",
            "edit.choice.pattern=ff", f"edit.choice.ratio={ratio}", "seeds=[0]")  # fmt: skip
    assert run(world, tmp_path / "store", *more, f"edit.out={out}") == 0
    file = "unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(d / file) for d in (world.root / "latents", out))
    changed = {name: x != before[name] for name, x in after.items() if not bool((x == before[name]).all())}
    assert changed
    for name, mask in changed.items():
        assert ".ff." in name
        assert mask.dim() == 2
        assert mask.sum(1).max() <= int(ratio * mask.shape[1])


def test_amplify_takes_the_parameters_that_hinder(world, tmp_path):
    more = ("objective=amplify", "probe.times=[500]", "seeds=[0]", f"edit.out={tmp_path}/louder")
    assert run(world, tmp_path / "store", *more) == 0
    record = json.loads((tmp_path / "louder/edit.json").read_text())
    assert record["edited"] > 0
    assert record["objective"] == "amplify"


def test_more_and_less_of_a_concept_are_disjoint(world, plain, tmp_path):
    """What hinders is not what holds: the other sign of one measurement. More of a concept needs no presence."""
    file, changed = "unet/diffusion_pytorch_model.safetensors", dict[str, list]()
    before = load_file(world.root / "pixels" / file)
    for towards in ("less", "more"):
        out = tmp_path / towards
        assert run(world, plain, f"edit.out={out}", "edit.choice.ratio=0.2", f"edit.choice.towards={towards}") == 0
        changed[towards] = [x != before[name] for name, x in sorted(load_file(out / file).items())]
    assert any(bool(mask.any()) for mask in changed["more"])
    assert not any(bool((a & b).any()) for a, b in zip(changed["less"], changed["more"], strict=True))


def test_a_model_that_does_not_draw_the_concept_is_not_edited(world, tmp_path):
    """Untrained, its prediction moves with the prompt all the same; the judge sees that it draws nothing."""
    model = tmp_path / "model"
    shutil.copytree(world.root / "pixels", model)
    for name in ("classifier.safetensors", "training.json"):
        shutil.copy(f"assets/demo/{name}", model)
    concept = f"concepts=[{RED[:-1]}, truth: {{shape: triangle, colour: red}}}}]"
    with pytest.raises(ValueError, match=r"the judge sees it in pictures of 'a red triangle' with 0\.\d+, under"):
        run(world, tmp_path, f"model.path={model}", concept, f"edit.out={tmp_path}/never", "edit.presence.samples=2")
    assert not (tmp_path / "never").exists()


def test_doses_are_looked_at_and_leave_nothing_behind(world, tmp_path):
    """Every criterion at every dose changes as many parameters; what is drawn without an edit is drawn once."""
    model = tmp_path / "model"
    shutil.copytree(world.root / "pixels", model)
    for name in ("classifier.safetensors", "training.json"):
        shutil.copy(f"assets/demo/{name}", model)
    assert run(world, tmp_path, f"model.path={model}", "doses=[0.01]", "samples=1", "seeds=[0]", "pictures_points=5",
               f"concepts=[{RED},{BLUE}]") == 0  # fmt: skip
    where = f"'{tmp_path}/components/demo/components_doses.parquet'"
    rows = asked(f"SELECT criterion, concept, any_value(edited), count(*) FROM {where} GROUP BY 1, 2 ORDER BY 1, 2")
    each = [(criterion, concept) for criterion in ("alpha", "none", "random", "size") for concept in ("blue", "red")]
    assert [row[:2] for row in rows] == each
    assert {row[3] for row in rows} == {6 + 9}, "three of each factor, and their pairs"
    edited = [row[2] for row in rows[::2]]
    assert edited[0] == edited[2] == edited[3] > edited[1] == 0
    means = f"SELECT avg(presence) FROM {where} WHERE criterion = 'none' AND of"
    red, seen = (asked(f"{means} = '{of}' AND value LIKE '%red%'")[0][0] for of in ("colour", "pair"))
    assert 0 <= seen <= red <= 1, "both factors are never seen more than one of them"
    drawn = parse((tmp_path / "components/demo/report.html").read_text()).all("table", "drawn")
    images = [[image.attributes["src"] for image in row.all("img")] for row in drawn[0].all("tbody")[0].all("tr")]
    assert [len(row) for row in images] == [2] * 9, "a row for each pair: as it is, and changed"
    assert any(before != after for before, after in images), "the page shows the same pictures twice"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["edit.out=/tmp/never", "edit.choice.against=reach"],
            "references are empty; name what an edit should preserve",
        ),
        (["objective=earse"], "expected one of: erase, contrast, amplify"),
        (["seeds=[1,1]"], "none twice"),
        (["edit.factor=1"], "less than 1"),
        (["criteria=[alpa]"], "expected some of: alpha, random, size"),
        (["pictures_points=2"], "expected at least 1, 1 and 3"),
        (["edit.out=x", f"concepts=[{RED},{BLUE}]"], "give one"),
        (["concepts=[]"], "concepts is not set"),
        (["model.path="], "model.path is not set"),
    ],
)
def test_mistakes_are_one_message(world, plain, more, said):
    with pytest.raises(ValueError, match=said):
        run(world, plain, *more)
