"""A finished audit answers new concepts with the numbers that an audit with these concepts has."""

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

import concept_trak as ct
import jobs.ask
from concept_trak import UserError
from concept_trak.attribution.concept import Concept, Phrasing
from concept_trak.audit import worker
from concept_trak.audit.finished_audit import open_audit
from concept_trak.audit.query_features import QueryWorker
from concept_trak.audit.questions import MovedModel, Questions, own_settings
from concept_trak.config import WorkerSettings
from concept_trak.data.benchmarks import synthetic
from concept_trak.data.decode import decode_image
from concept_trak.data.image import center_crop
from concept_trak.models import small
from concept_trak.report.publish_answer import AskConfig
from concept_trak.store.part import Damaged
from jobs.configure import configure, main
from serving.answering import Answering
from serving.application import application
from serving.archive import QuestionArchive
from tests.few_steps import generate_in_few_steps
from tests.jobs.world import RESOLUTION, Found, World, altered, files_under

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIER = ROOT / "assets/demo/classifier.safetensors"
SHORT = (
    "model.parameters=cross_attention", "scores=top", "top=5", "aggregates=false", "data.shard_rows=4",
    "methods.caption_trak.train.times=[500]", "methods.caption_trak.query.points=6",
    "methods.caption_trak.query.every=3",
)  # fmt: skip
FIRST = "concepts=[{name: first, prompt: a red triangle, without_prompt: red, samples: 2}]"
CIRCLE = Concept("circle", prompt="a blue circle", without_prompt="blue", samples=2)
ONE_CORE = WorkerSettings()
"""As the serial workers of the audits here, so that sums have one order."""


def listed(concepts: tuple[Concept, ...]) -> str:
    """The concepts as the command line of an audit takes them."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, Phrasing):
            return f"{{prompt: {value.prompt}, without_prompt: {value.without_prompt or chr(39) * 2}}}"
        return str(value)

    keys = ("name", "prompt", "without_prompt", "minus", "phrasings", "examples", "classifier", "shows", "scope",
            "image", "samples", "seed")  # fmt: skip
    given = [", ".join(f"{k}: {text(v)}" for k in keys if (v := getattr(c, k)) not in ("", ())) for c in concepts]
    return f"concepts=[{', '.join(f'{{{fields}}}' for fields in given)}]"


def audit(
    world: World, store: Path, *more: str, model: str = "pixels", method: str = "caption_trak", data: str = "few"
) -> Found:
    done = world.audit(store, *SHORT, *more, model=model, method=method, data=data)
    assert done.code == 0
    return done


def questions(done: Found, model: MovedModel = MovedModel()) -> Questions:
    return Questions(open_audit(str(done.store), done.audit), model, ONE_CORE)


def rankings(done: Found) -> list[dict[str, Any]]:
    return pq.read_table(done.folder / "top.parquet").to_pylist()


@pytest.fixture(scope="module", autouse=True)
def _images_in_few_steps():
    """Of `das`, whose answers are compared within this process."""
    with pytest.MonkeyPatch.context() as patch:
        generate_in_few_steps(patch)
        yield


@pytest.fixture(scope="module")
def first(_images_in_few_steps, world, tmp_path_factory) -> Found:
    """An audit of one concept by two methods: what is asked about it is asked afterwards."""
    return audit(world, tmp_path_factory.mktemp("first"), FIRST, method="[caption_trak,das]")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        synthetic.draw_labelled(5, i, resolution=2 * RESOLUTION).image.save(folder / f"{i}.png")
    return folder


def test_an_answer_has_the_bits_of_an_audit(world, first, pictures):
    """Every way to ask by words or by one image, by two methods, in one pass."""
    concepts = (
        CIRCLE,
        Concept("red", prompt="a red triangle", minus="red", samples=2, seed=3),
        Concept("words", "a red square", "a square", phrasings=(Phrasing("red", "blue"),), samples=3),
        Concept("here", prompt="a red circle", without_prompt="a circle", scope="local", image=f"{pictures}/0.png"),
    )
    again = audit(world, first.store, "audit=again", listed(concepts), method="[caption_trak,das]")
    answer = questions(first).ask(concepts, top=5)
    assert answer.table.schema.equals(pq.read_schema(again.folder / "top.parquet"))
    assert answer.table.to_pylist() == rankings(again)
    compared = json.loads((again.folder / "metrics.json").read_text())["comparisons"]
    assert {
        name: json.loads(json.dumps([asdict(o) for o in own])) for name, own in answer.comparisons.items()
    } == compared
    assert {own["sampled"] for pairs in compared.values() for own in pairs} == {16}
    for method in ("caption_trak", "das"):
        for i, concept in enumerate(concepts):
            query = again.query(method, concept.name)
            assert answer.results.queries[method, concept.name].phi.tolist() == query["phi"]
            assert answer.results.solutions[method].lam == query["lambda"]
            assert answer.results.solutions[method].residual[i] == query["residual"]


def test_examples_and_a_classifier_are_asked_alike(world, first, pictures):
    concepts = (
        Concept("pictures", examples=(str(pictures),), samples=2),
        Concept("judged", classifier=str(CLASSIFIER), shows="red", samples=2),
    )
    again = audit(world, first.store, "audit=shown", listed(concepts))
    answer = questions(first).ask(concepts, ["caption_trak"], top=5)
    assert answer.table.to_pylist() == rankings(again)
    assert questions(again).config.methods == {"caption_trak": questions(first).config.methods["caption_trak"]}


def test_data_that_changed_since_are_named(world, tmp_path):
    data = altered(world, tmp_path / "data", lambda rows: None)
    done = audit(world, tmp_path / "store", FIRST, f"data.uri={data}")
    asked = questions(done)
    os.utime(data / "train.parquet", (1, 1))
    message = r"ranked, but the training data of audit first cannot be read again: .*train.parquet changed"
    with pytest.raises(UserError, match=message):
        asked.ask([CIRCLE])


def test_a_question_by_itself_has_the_numbers_of_an_audit_to_rounding(first):
    """With one right-hand side in place of two, the solve has another order of sums."""
    pair = (CIRCLE, Concept("red", prompt="a red triangle", minus="red", samples=2))
    together = questions(first).ask(pair, top=5).top("circle", n=3).to_pylist()
    audit = ct.open_audit(str(first.store), first.audit)
    alone = audit.ask(CIRCLE, top=5).top(n=3).to_pylist()
    rounded = dict.fromkeys(("score", "low", "high"), 0)
    assert [row | rounded for row in alone] == [row | rounded for row in together]
    assert [row["score"] for row in alone] == pytest.approx([row["score"] for row in together], rel=1e-4)
    assert audit.ask([CIRCLE], "das", top=1).bottom()["method"].to_pylist() == ["das"]


def test_with_as_many_samples_as_features_k_is_factorized(world, tmp_path):
    done = audit(world, tmp_path, FIRST, "projector.dim=12")
    again = audit(world, tmp_path, "audit=again", listed((CIRCLE,)), "projector.dim=12")
    assert questions(done).ask([CIRCLE], top=5).table.to_pylist() == rankings(again)


def test_a_damping_that_was_chosen_is_used_again(world, tmp_path):
    two = listed((Concept("a", "a red triangle", "red", samples=4), Concept("b", "a blue circle", "blue", samples=4)))
    done = audit(world, tmp_path, two, "damping=auto")
    answer = questions(done).ask([CIRCLE], top=5)
    choice = answer.results.solutions["caption_trak"].damping
    assert choice.curve
    assert choice.reliability == (), "the curve says nothing of a concept that it was not chosen with"
    again = audit(world, tmp_path, "audit=again", listed((CIRCLE,)), f"damping={choice.damping}")
    assert answer.table.to_pylist() == rankings(again)


def test_rejects_and_parts_without_rows_change_nothing(world, tmp_path):
    def spoil(rows: list[dict[str, Any]]) -> None:
        for row in (*rows[:4], rows[6]):  # the whole first shard, and one sample of the second
            row["image"] = {"bytes": b"no image", "path": None}

    data = ("data.uri=" + str(altered(world, tmp_path / "data", spoil)), "budget.rejects=1")
    done = audit(world, tmp_path / "store", FIRST, *data)
    again = audit(world, tmp_path / "store", "audit=again", listed((CIRCLE,)), *data)
    answer = questions(done).ask([CIRCLE], top=20)
    assert answer.top().num_rows == 11
    assert answer.table.slice(0, 5).to_pylist() == rankings(again)[:5]


def test_a_second_question_keeps_the_model_and_the_factor_and_nothing_is_written(first, monkeypatch):
    opened, queried, before = [], [], files_under(first.store)
    open_model = worker.open_model
    monkeypatch.setattr(worker, "open_model", lambda *given: opened.append(given) or open_model(*given))
    query = QueryWorker.__call__
    monkeypatch.setattr(QueryWorker, "__call__", lambda *given: queried.append(given) or query(*given))
    asked = questions(first)
    same = replace(CIRCLE, name="same", truth={"colour": "blue"})
    answers = [asked.ask([c], ["caption_trak"], top=2) for c in (CIRCLE, replace(CIRCLE, seed=1), same)]
    assert len(opened) == 1
    assert len(queried) == 2, "an equal concept was computed again"
    assert answers[0].table != answers[1].table
    assert answers[0].table.drop_columns("concept").equals(answers[2].table.drop_columns("concept"))
    assert set(answers[2].table["concept"].to_pylist()) == {"same"}
    assert files_under(first.store) == before


def test_methods_with_one_query_side_share_a_query(world, tmp_path, monkeypatch):
    both, path = "[caption_trak,concept_trak]", [f"methods.concept_trak.query.{key}" for key in ("points=6", "every=3")]
    done = audit(world, tmp_path, FIRST, *path, method=both)
    again = audit(world, tmp_path, "audit=again", listed((CIRCLE,)), *path, method=both)
    queried, query = [], QueryWorker.__call__
    monkeypatch.setattr(QueryWorker, "__call__", lambda *given: queried.append(given) or query(*given))
    answer = questions(done).ask([CIRCLE], top=5)
    assert answer.table.to_pylist() == rankings(again)
    assert len(queried) == 1


@pytest.fixture
def said(first, monkeypatch, capsys):
    """Runs the command and returns its exit code with what it printed."""

    def run(*arguments: str, audit: str = first.audit, store: Path = first.store) -> tuple[int, str]:
        given = [f"store={store}", f"audit={audit}", *arguments]
        monkeypatch.setattr(sys, "argv", ["jobs.ask", *given])
        with pytest.raises(SystemExit) as ended:
            main(jobs.ask.ask, "ask", AskConfig)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


PROMPT = "prompt=a blue circle"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit=typo", PROMPT], "has no audit 'typo'; `python -m jobs.status` lists"),
        (["audit=", PROMPT], "which audit is asked? audit=AUDIT"),
        ([PROMPT, "method=trak"], "method='trak': audit first has caption_trak, das"),
        ([], "concept 'question': give either prompt or labels"),
        (["without=blue"], "concept 'question': give either prompt or labels"),
        ([PROMPT, "without=blue", "minus=blue"], "minus writes out without_prompt from prompt"),
        ([PROMPT, "minus=red"], "'red' is not in 'a blue circle'"),
        ([PROMPT, "without=a blue circle"], "both conditions are 'a blue circle'"),
        (["examples=/nowhere", "method=das"], "needs the images of a prompt; choose a method"),
        ([PROMPT, "top=0"], "top=0; expected at least 1"),
        ([PROMPT, "samples=0"], "samples=0; expected at least 1"),
        ([PROMPT, "promt=x"], "unknown key promt (did you mean prompt?)"),
        ([PROMPT, "out={first}/audits/first"], "there is a top.parquet, which is not replaced"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(said, first, monkeypatch, arguments, message):
    monkeypatch.setattr(worker, "open_model", lambda *given: pytest.fail("the model was loaded"))
    code, text = said(*(argument.replace("{first}", str(first.store)) for argument in arguments))
    assert code == 2, text
    assert message in text


@pytest.fixture
def copied(first, tmp_path) -> Path:
    """The store of the first audit, to be damaged."""
    shutil.copytree(first.store, tmp_path / "copied")
    return tmp_path / "copied"


def part_of(store: Path) -> Path:
    return min((store / "features").glob("*/parts/*.parquet"))


def unfinished(store: Path) -> None:
    (store / "audits/first/manifest.json").unlink()


def collected(store: Path) -> None:
    shutil.rmtree(store / "features")


def lost_part(store: Path) -> None:
    part = part_of(store)
    (part.parent.parent / "commits" / f"{part.stem}.json").unlink()
    part.unlink()


def lost_index(store: Path) -> None:
    shutil.rmtree(store / "sources")


def lost_gram(store: Path) -> None:
    (store / "audits/first/das/gram.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unfinished, "audit first is not finished; run its command again"),
        (collected, "are gone: "),
        (lost_part, "are gone: "),
        (lost_index, "or its index is gone"),
    ],
)
def test_an_audit_that_cannot_answer_says_so_before_the_model_is_loaded(said, copied, monkeypatch, damage, message):
    monkeypatch.setattr(worker, "open_model", lambda *given: pytest.fail("the model was loaded"))
    damage(copied)
    code, text = said(PROMPT, store=copied)
    assert code == 2, text
    assert message in text


def test_the_command_of_the_audit_makes_a_lost_index_again(world, said, copied):
    lost_index(copied)
    audit(world, copied, FIRST, method="[caption_trak,das]")
    code, text = said(PROMPT, "samples=1", "method=caption_trak", store=copied)
    assert code == 0, text


def test_a_damaged_part_is_named(said, copied):
    part = part_of(copied)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    code, text = said(PROMPT, "samples=1", "top=2", store=copied)
    assert code == 2, text
    assert f"{part.name} was truncated or altered" in text
    with pytest.raises(Damaged, match=part.name):
        open_audit(str(copied), "first").ask(CIRCLE)


def test_a_gram_that_is_gone_is_named(said, copied):
    lost_gram(copied)
    code, text = said(PROMPT, "samples=1", "method=das", store=copied)
    assert code == 2, text
    assert "das/gram.safetensors is gone" in text


def test_a_model_that_has_moved_is_given_and_another_one_is_refused(world, said, tmp_path):
    shutil.copytree(world.root / "pixels", tmp_path / "model")
    done = audit(world, tmp_path / "store", FIRST, f"model.path={tmp_path}/model")
    expected = questions(done).ask([CIRCLE], top=3).table
    shutil.move(tmp_path / "model", tmp_path / "moved")
    code, text = said(PROMPT, store=done.store)
    assert code == 2, text
    assert f"{tmp_path}/model" in text
    assert "set model.path= to where it is now" in text
    code, text = said(
        PROMPT, "without=blue", "samples=2", "name=circle", "top=3", f"model.path={tmp_path}/moved", store=done.store
    )
    assert code == 0, text
    assert questions(done, MovedModel(path=f"{tmp_path}/moved")).ask([CIRCLE], top=3).table.equals(expected)
    small.pixel_pipeline(1, RESOLUTION).save_pretrained(tmp_path / "other")
    code, text = said(PROMPT, f"model.path={tmp_path}/other", store=done.store)
    assert code == 2, text
    assert f"audit first cannot be asked: the model at '{tmp_path}/other' is not the one of the features" in text
    assert "model.unet/diffusion_pytorch_model.safetensors: " in text
    assert " here, " in text


def test_the_command_prints_as_an_audit_does_and_writes_a_table_and_a_page(said, first, tmp_path):
    out = tmp_path / "out"
    code, text = said(PROMPT, "minus=blue", "method=[caption_trak]", "samples=2", "top=3", f"out={out}")
    assert code == 0, text
    lines = text.splitlines()
    assert "question: 'a blue circle' without it: 'a circle' (minus 'blue', written out) (global)" in lines
    rows = pq.read_table(out / "top.parquet")
    assert rows.schema.equals(pq.read_schema(first.folder / "top.parquet"))
    best = [r for r in rows.to_pylist() if (r["form"], r["end"]) == ("damped", "top")]
    assert [r["rank"] for r in best] == [1, 2, 3]
    for row in best:
        assert f"    {row['rank']:>3}  {row['score']:>10.3g}  {row['sample_id']:<20} {row['caption']}" in lines
    (agree,) = [line for line in lines if "caption_trak, damped and caption_trak, plain share" in line]
    assert re.search(r"share \d of their first 3; the ranks of 16 samples correlate to -?[01]\.\d\d", agree)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") >= 6, "thumbnails and the query's own samples"
    for words in ("what <q>a blue circle</q> has and <q>a circle</q> does not", "caption_trak", "(Spearman)"):
        assert words in page
    code, text = said(PROMPT, f"out={out}")
    assert (code, "give another folder" in text) == (2, True)


def test_a_server_answers_as_the_command(said, first, pictures, tmp_path):
    """The same table, row for row, for a prompt and a picture that is sent; the audit's files stay as they are."""
    own, out = pictures / "0.png", tmp_path / "out"
    words = ("prompt=a red circle", "without=a circle", "method=das", "samples=2", "top=3")
    assert said(*words, f"image={own}", f"out={out}")[0] == 0
    before, audited = files_under(first.store), open_audit(str(first.store), "first")
    answering = Answering(Questions(audited, worker=own_settings()), QuestionArchive(f"{tmp_path}/kept", audited), 4)

    async def talk() -> None:
        async with TestClient(TestServer(application(answering))) as client:
            sent = await (await client.post("/pictures", data=own.read_bytes())).json()
            asked = {"prompt": "a red circle", "without": "a circle", "samples": 2, "top": 3, "method": ["das"]}
            key = (await (await client.post("/questions", json=asked | {"image": sent["id"]})).json())["id"]
            while (state := await (await client.get(f"/questions/{key}")).json())["state"] in ("queued", "running"):
                await asyncio.sleep(0.02)
            assert state["state"] == "done", state
            table = pq.read_table(io.BytesIO(await (await client.get(f"/questions/{key}.parquet")).read()))
            assert table.equals(pq.read_table(out / "top.parquet"))
            thumbnail = await client.get(f"/samples/{table['sample_id'][0]}/thumbnail")
            assert thumbnail.content_type == "image/png"
            original = await client.get(f"/questions/{key}/originals/{table['sample_id'][0]}")
            fitted = center_crop(decode_image(await original.read()), RESOLUTION)
            small = Image.open(io.BytesIO(await thumbnail.read()))
            assert fitted.tobytes() == small.tobytes(), "another sample's original"

    asyncio.run(asyncio.wait_for(talk(), 120))
    assert files_under(first.store) == before


def test_one_image_and_several_methods_by_name(said, pictures):
    code, text = said("prompt=a red circle", "without=a circle", f"image={pictures}/0.png", "top=1", "name=here")
    assert code == 0, text
    assert "here: 'a red circle' without it: 'a circle' (local)" in text
    assert [line.strip() for line in text.splitlines() if line.strip() in ("caption_trak", "das")] == [
        "caption_trak",
        "das",
    ]


def test_keys_become_a_concept():
    asked = configure(AskConfig, "ask", ["labels=3", "without=5", "examples=[]", "method=a", "model.path=x"])
    assert (asked.concept.labels, asked.concept.without_labels, asked.concept.scope) == ("3", "5", "global")
    assert (asked.method, asked.model.path) == ("a", "x")
    assert configure(AskConfig, "ask", ["examples=[a.png,b]"]).concept.examples == ("a.png", "b")
    assert configure(AskConfig, "ask", ["examples=a"]).concept.examples == ("a",)
    with pytest.raises(UserError, match="go together"):
        _ = configure(AskConfig, "ask", ["classifier=a"]).concept


def test_neither_ray_nor_a_network_is_needed(first, tmp_path):
    code = (
        "import runpy, socket, sys\n"
        "def refused(*given, **named): raise AssertionError('the network was used')\n"
        "socket.socket.connect = refused\n"
        f"sys.argv = ['jobs.ask', 'store={first.store}', 'audit=first', 'prompt=red', 'samples=1', 'top=1']\n"
        "try:\n    runpy.run_module('jobs.ask', run_name='__main__')\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print('ray' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "False"


def test_a_picture_that_is_none_is_named(said, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    code, text = said("prompt=a red circle", f"image={tmp_path}/no.png")
    assert code == 2, text
    assert "no.png" in text
