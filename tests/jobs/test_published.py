"""Rows of published tables on small folders of the published form: CelebA by attributes, AbC by its tasks."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from concept_trak.attribution.ranking import recall_at
from concept_trak.config import AuditConfig
from concept_trak.data.benchmarks import abc_exemplars, celeba
from concept_trak.data.benchmarks.abc_exemplars import Custom
from concept_trak.data.benchmarks.celeba import Faces
from concept_trak.data.benchmarks.export import within
from concept_trak.evaluation.published import PublishedConfig
from jobs.audit import AuditRunConfig
from jobs.configure import configure_all
from jobs.published import published
from tests.jobs.world import RESOLUTION

SCHEMAS = (PublishedConfig, AuditConfig, AuditRunConfig)
NAMES = ("Bald", "Smiling", "Young")
FACES = Faces(("Young", "Smiling"), (True, False), (("red", "blue"), ("square", "circle")))
TASK = {
    "prompt": "a <new1> square", "train_prompt": "<new1> circle", "test_case": "test_bamfg", "test_case_ind": 1,
    "model_path": "models/bamfg/7_0", "synth_image_path": "synth/bamfg/gpt/7_0/samples/00000.png", "category": "art",
}  # fmt: skip


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (RESOLUTION, RESOLUTION), (shade % 256, 255 - shade % 256, 90)).save(path)


@pytest.fixture(scope="module")
def hq(tmp_path_factory) -> Path:
    """CelebAMask-HQ's form: 16 faces, every combination of three attributes twice."""
    root = tmp_path_factory.mktemp("CelebAMask-HQ")
    lines = []
    for i in range(16):
        picture(root / f"CelebA-HQ-img/{i}.jpg", 15 * i)
        lines.append(f"{i}.jpg  " + " ".join("1" if i >> bit & 1 else "-1" for bit in range(3)))
    text = "\n".join(["16", " ".join(NAMES) + " ", *lines]) + "\n"
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    return root


@pytest.fixture(scope="module")
def abc(tmp_path_factory) -> Path:
    """AbC's form: two tuned models in a test case, three tasks of the second, nine distractors."""
    root = tmp_path_factory.mktemp("abc")
    for i in range(9):
        picture(root / f"laion_subset/images/{i:06d}.png", 20 * i)
    (root / "laion_subset/captions.txt").write_text(
        "".join("a red circle\n" if i % 2 else "a square \n" for i in range(9))
    )
    lists = [[f"dataset/exemplar/bamfg/images/{m}_0/{m}_{i}.jpg" for i in range(4)] for m in (6, 7)]
    for path in lists[1]:
        picture(root / path.removeprefix("dataset/"), 200)
    case = [{"exemplar": one, "synth": {"gpt": []}, "class_id": "7_0", "category": None} for one in lists]
    other = TASK | {"model_path": "models/bamfg/6_0", "test_case_ind": 0}
    found = [TASK, other, TASK | {"prompt": "A <new1> triangle"}]
    picture(root / TASK["synth_image_path"], 100)
    for name, value in (("json/test_bamfg.json", case), ("tasks/all_tasks.json", found)):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(value))
    return root


def test_faces_are_captioned_by_their_attributes_without_the_held_out_pair(hq):
    found = celeba.celeba_pictures(hq, FACES)
    assert len(found) == 12, "the four faces that are young and do not smile are not in training"
    by_id = {one.id: one for one in found}
    assert by_id["6"].caption == "red, square"
    assert by_id["6"].labels == {"Young": "yes", "Smiling": "yes"}
    assert by_id["3"].caption == "blue, square"
    assert by_id["8"].file == hq / "CelebA-HQ-img/8.jpg"
    assert "4" not in by_id
    assert Faces(("Wavy_Hair",), (True,)).caption((False,)) == "not wavy hair"


def test_celeba_is_read_in_its_other_forms(hq, tmp_path):
    lines = (hq / "CelebAMask-HQ-attribute-anno.txt").read_text().splitlines()
    (tmp_path / "Anno").mkdir()
    (tmp_path / "Img/img_align_celeba").mkdir(parents=True)
    (tmp_path / "Anno/list_attr_celeba.txt").write_text("\n".join(lines))
    assert [one.id for one in celeba.celeba_pictures(tmp_path, FACES)] == [
        one.id for one in celeba.celeba_pictures(hq, FACES)
    ]
    rows = [",".join(["image_id", *NAMES]), *(",".join(line.split()) for line in lines[2:])]
    (tmp_path / "Anno/list_attr_celeba.txt").unlink()
    (tmp_path / "list_attr_celeba.csv").write_text("\n".join(rows))
    assert [one.caption for one in celeba.celeba_pictures(tmp_path, FACES)] == [
        o.caption for o in celeba.celeba_pictures(hq, FACES)
    ]


def test_questions_about_faces_turn_one_attribute_over():
    asked = celeba.celeba_concepts(FACES, 3)
    assert (len(asked["in"]), len(asked["out"])) == (6, 2)
    young = asked["out"][0]
    assert (young.prompt, young.without_prompt) == ("red, circle", "blue, circle")
    assert young.truth == {"Young": "yes"}
    smiling = asked["out"][1]
    assert (smiling.without_prompt, smiling.truth) == ("red, square", {"Smiling": "no"})


def test_exemplars_stand_among_distractors_with_or_without_their_token(abc):
    own = Custom(model="models/bamfg/7_0")
    found = abc_exemplars.abc_pictures(abc, own)
    assert [one.labels["exemplar"] for one in found] == ["yes"] * 4 + ["no"] * 9
    assert {one.caption for one in found[:4]} == {"<new1> circle"}
    assert [one.caption for one in found[4:6]] == ["a square", "a red circle"]
    plain = abc_exemplars.abc_pictures(abc, Custom(model="models/bamfg/7_0", captions_name_token=False, distractors=2))
    assert [one.caption for one in plain] == ["circle"] * 4 + ["a square", "a red circle"]
    asked = abc_exemplars.abc_concepts(abc, own, 2)
    assert [(one.text, one.without) for one in asked] == [
        ("a <new1> square", "a square"),
        ("A <new1> triangle", "A triangle"),
    ]
    here = abc_exemplars.abc_concepts(abc, Custom(model="models/bamfg/7_0", scope="local"), 2)[0]
    assert here.image == str(abc / "synth/bamfg/gpt/7_0/samples/00000.png")


def test_recall_counts_as_many_as_could_be_there():
    """(which of the first ten show it, how many there are, expected)"""
    for hits, carriers, expected in (
        ([True] * 10, 13, 1.0), ([True] * 4 + [False] * 6, 4, 1.0), ([True] + [False] * 9, 1, 1.0),
        ([False] * 9 + [True], 4, 0.25), ([True] * 5 + [False] * 5, 40, 0.5),
    ):  # fmt: skip
        assert recall_at(hits, carriers, 10) == expected, f"{sum(hits)} of {carriers} in the first ten"


def run(world, tmp_path, *more: str) -> int:
    small = ("cluster=serial", "projector.dim=64", "method=caption_trak", "methods.caption_trak.train.times=[500]",
             "methods.caption_trak.query.points=6", "methods.caption_trak.query.every=3", "samples=1",
             "model.parameters=cross_attention")  # fmt: skip
    place = (f"store={tmp_path}/store", f"out={tmp_path}/out", f"model.path={world.root}/pixels")
    return published(*configure_all(SCHEMAS, "published", [*small, *place, *more]))


def test_one_command_is_a_row_of_the_table_of_faces(world, hq, tmp_path, capsys):
    asked = ("set=celeba", f"root={hq}", "faces.attributes=[Young,Smiling]", "faces.held_out=[true,false]",
             "faces.words=[[red,blue],[square,circle]]")  # fmt: skip
    assert run(world, tmp_path, *asked) == 0
    said = capsys.readouterr().out
    assert "caption_trak   in   precision@10" in said
    assert "caption_trak   out  precision@10" in said
    rows = json.loads((tmp_path / "out.celeba.json").read_text())
    top = pq.read_table(tmp_path / "store/audits/celeba/top.parquet").to_pylist()
    hits = 0
    for concept, label, shown in (("Young_in_yn", "Young", "yes"), ("Smiling_in_yn", "Smiling", "no")):
        best = [r for r in top if (r["concept"], r["form"], r["end"]) == (concept, "damped", "top") and r["rank"] < 11]
        hits += sum(r[label] == shown for r in best)
    assert {r["cell"]: r["queries"] for r in rows} == {"in": 6, "out": 2}
    assert rows[1]["value"] == pytest.approx(hits / 20)


def test_one_command_is_a_row_of_the_table_of_exemplars(world, abc, tmp_path, capsys):
    asked = ("set=abc", f"root={abc}", "custom.model=models/bamfg/7_0")
    with pytest.raises(ValueError, match=r"hold no \.safetensors: convert the embedding of <new1> .* is a pickle"):
        run(world, tmp_path, *asked)
    (abc / "models/bamfg/7_0").mkdir(parents=True)
    width = json.loads((world.root / "pixels/text_encoder/config.json").read_text())["hidden_size"]
    save_file({"<new1>": torch.randn(1, width)}, abc / "models/bamfg/7_0/new1.safetensors")
    assert run(world, tmp_path, *asked) == 0
    said = capsys.readouterr().out
    assert "without it: 'a square' (minus '<new1>', written out)" in said
    assert "recall@10" in said
    parts = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert run(world, tmp_path, *asked) == 0
    assert parts == [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.parquet"))]
    with pytest.raises(ValueError, match=r"was made from other settings .*; give another out="):
        run(world, tmp_path, *asked, "custom.captions_name_token=false")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("set=mnist", "root=x"), r"set='mnist', root='x'; expected set=celeba or abc and the folder"),
        (("set=celeba", "root={hq}"), r"faces\.attributes is empty; expected three of: Bald, Smiling, Young"),
        (("set=celeba", "root={hq}", "faces.attributes=[Yuong]", "faces.held_out=[true]"), r"did you mean 'Young'"),
        (("set=celeba", "root={hq}", "faces.attributes=[Young]"), r"expected one true or false for each attribute"),
        (("set=celeba", "root={hq}", "out=s3://bucket/a"), r"out=s3://bucket/a: expected a folder of this machine"),
        (("set=celeba", "root=/nowhere"), r"/nowhere has none of CelebAMask-HQ-attribute-anno.txt"),
        (("set=abc", "root={hq}"), r"has none of tasks/all_tasks.json, all_tasks.json"),
        (("set=abc", "root={abc}", "custom.model=x"), r"custom\.model='x' has no task .*one of: models/bamfg/6_0, mod"),
        (("set=abc", "root={abc}", "concepts=[{{name: a, prompt: b}}]"), r"concepts is set, and the benchmark has"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_is_not_as_it_was_published(world, hq, abc, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run(world, tmp_path, *(one.format(hq=hq, abc=abc) for one in more))


def test_files_that_are_not_whole(hq, abc, tmp_path):
    (tmp_path / "CelebA-HQ-img").mkdir()
    lines = (hq / "CelebAMask-HQ-attribute-anno.txt").read_text().splitlines()
    for text, message in (("\n".join(lines[:-2]), "says 16 images and has 14"), ("", "is empty"),
                          ("\n".join([*lines[:-1], "15.jpg 1 1"]), "is not a file's name and 3 values")):  # fmt: skip
        (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            celeba.celeba_pictures(tmp_path, FACES)
    (tmp_path / "tasks").mkdir()
    for value, message in (
        ("{", "is not JSON"),
        ("{}", "is no list of objects"),
        ('[{"prompt": "a"}]', "has no train_p"),
    ):
        (tmp_path / "tasks/all_tasks.json").write_text(value)
        with pytest.raises(ValueError, match=message):
            abc_exemplars.tasks(tmp_path, Custom(model="m"))


@pytest.mark.parametrize("number", [-1, 2, "1"])
def test_a_task_asks_for_a_model_that_is_there(abc, tmp_path, number):
    shutil.copytree(abc, tmp_path / "abc")
    (tmp_path / "abc/tasks/all_tasks.json").write_text(json.dumps([TASK | {"test_case_ind": number}]))
    with pytest.raises(ValueError, match=rf"has 2 models, and a task asks for number {number!r}"):
        abc_exemplars.abc_pictures(tmp_path / "abc", Custom(model=TASK["model_path"]))


@pytest.mark.parametrize("name", ["/etc/passwd", "../elsewhere.png", "a/../../b.png"])
def test_a_list_names_no_files_outside_of_the_data_set(tmp_path, name):
    assert within(tmp_path, "a/b.png") == tmp_path / "a/b.png"
    with pytest.raises(ValueError, match=r"leads out of .*; a published list names files below it"):
        within(tmp_path, name)
