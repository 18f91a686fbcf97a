"""Every kind of model is audited from its directory, end to end: text, classes, nothing; an adapter beside its base."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file

from concept_trak.audit.prepare import prepare
from concept_trak.models import small
from tests.data.files import encoded
from tests.jobs.world import CONCEPT, World, altered
from tests.models.families import FAMILIES, seeded

COLUMN = "conditioning_image"
TRIANGLE = "{name: triangle, labels: triangle, without_labels: '', samples: 2, truth: {shape: triangle}}"


@pytest.fixture
def saved(tmp_path):
    def save(name: str) -> Path:
        seeded(FAMILIES[name].build).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    "name",
    [
        "sdxl",
        "sd3",
        "flux",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("flux2", "chroma", "qwen_image")),
    ],
)
def test_text_to_image(world: World, saved, tmp_path, name, capsys):
    more = [f"model.path={saved(name)}", f"model={name}", "model.batch=8"]
    more += [f"model.{key}={value}" for key, value in FAMILIES[name].ways.items()]
    found = world.audit(tmp_path / "store", *more, data="few")
    assert found.code == 0
    ids, _, phi = found.features()
    assert (len(ids), phi.shape[1]) == (16, 64)
    assert len({row["score"] for row in found.top()}) > 8, "samples of different captions score alike"
    said = capsys.readouterr().out
    assert f"tensors ({'cross_attention' if name == 'sdxl' else 'attention'})" in said
    assert "features 128 B a sample and method, 2.05 kB in all; gradients at most " in said


def animate(rows: list[dict[str, Any]]) -> None:
    """Each image becomes a clip that turns it; the first is a still, and the second a short one."""
    for number, row in enumerate(rows):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        frames = [image.rotate(20 * i) for i in range({0: 1, 1: 3}.get(number, 6))]
        row["image"]["bytes"] = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.soak
def test_a_video_model_on_animated_files(world: World, saved, tmp_path, capsys):
    """A clip is a sample, what is no clip is a reject, and the page shows the first frame."""
    more = ["model=wan", f"model.path={saved('wan')}", "model.resolution=32", "data.frames=5", "budget.rejects=1",
            f"data.uri={altered(world, tmp_path / 'clips', animate)}"]  # fmt: skip
    audited = world.audit(tmp_path / "store", *more)
    assert audited.code == 0
    rejects = pq.read_table(audited.folder / "rejects.parquet").to_pylist()
    assert [row["reason"] for row in rejects] == ["too_few_frames"] * 2
    ids, _, phi = audited.features()
    assert (len(ids), phi.shape[1]) == (14, 64)
    assert len({row["score"] for row in audited.top()}) > 8
    settings = json.loads(next((tmp_path / "store/features").glob("*/feature_set.json")).read_text())["settings"]
    assert settings["preprocessing"] == {"resolution": 32, "frames": 5}
    assert (audited.folder / "report.html").read_text().count("data:image/png;base64,") >= 14
    assert "too_few_frames" in capsys.readouterr().out


def test_a_controlnet_with_its_images(world: World, saved, tmp_path, capsys):
    """The images are a column of the data and a file of the concept; the page has the concept's words about it."""
    (source,) = (world.root / "few").iterdir()
    table = pq.read_table(source)
    (tmp_path / "data").mkdir()
    pq.write_table(table.append_column(COLUMN, table["image"]), tmp_path / "data/train.parquet")
    (tmp_path / "edges.png").write_bytes(table["image"][0]["bytes"].as_py())
    concept = CONCEPT.replace("}}", f"}}, {COLUMN}: {tmp_path}/edges.png}}")
    more = ["model=controlnet", f"model.path={saved('controlnet')}", f"data.{COLUMN}_column={COLUMN}",
            f"data.uri={tmp_path}/data", f"concepts=[{concept}]"]  # fmt: skip
    found = world.audit(tmp_path / "store", *more)
    assert found.code == 0
    assert len(found.features()[0]) == 16
    assert "(both with the image " in capsys.readouterr().out
    settings = json.loads(next((tmp_path / "store/features").glob("*/feature_set.json")).read_text())["settings"]
    assert settings[f"{COLUMN}_column"] == COLUMN
    assert "controlnet/diffusion_pytorch_model.safetensors" in settings["model"]


def test_an_ip_adapter_with_the_images_as_their_own_references(world: World, saved, tmp_path, capsys):
    """The data have no other column, and the concept has a picture and no second prompt."""
    (source,) = (world.root / "few").iterdir()
    (tmp_path / "style.png").write_bytes(pq.read_table(source)["image"][0]["bytes"].as_py())
    concept = f"{{name: style, prompt: a red circle, {COLUMN}: {tmp_path}/style.png, samples: 2}}"
    more = ["model=ip_adapter", f"model.path={saved('ip_adapter')}", f"concepts=[{concept}]"]
    found = world.audit(tmp_path / "store", *more, data="few")
    assert found.code == 0
    assert len({row["score"] for row in found.top()}) > 8, "samples of different captions and pictures score alike"
    assert "(with the image " in capsys.readouterr().out
    settings = json.loads(next((tmp_path / "store/features").glob("*/feature_set.json")).read_text())["settings"]
    assert {"image_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"} <= set(settings["model"])


@pytest.mark.parametrize(
    ("override", "family", "more"),
    [
        ("stable_diffusion", "stable_diffusion_v", ()),
        ("pixart", "pixart", ()),
        ("class_unet", "unet_2d", ("data.caption_column=shape", "data.captions=class",
                                   "concepts=[{name: one, labels: '1', without_labels: '0', samples: 1}]")),
    ],
)  # fmt: skip
def test_the_other_families_are_opened_by_their_override_files(world: World, saved, tmp_path, override, family, more):
    """Their networks are in the conformance suite; this is that a directory and one file are enough."""
    here = (f"model={override}", f"model.path={saved(family)}", *more)
    p = prepare(world.config(tmp_path / "store", *here, data="few"))
    assert p.parameters > 0
    assert [q.concept.name for q in p.queries] == [p.config.concepts[0].name]


def test_classes_by_name_from_a_label_column(world: World, saved, tmp_path):
    """One class is none of the model's: those rows are rejects that say so, and the rest is audited."""
    path = saved("dit")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": "triangle", "1": "circle"}}))
    more = [
        "model=dit",
        f"model.path={path}",
        "data.caption_column=shape",
        "data.captions=class",
        "budget.rejects=1",
        f"concepts=[{TRIANGLE}]",
    ]
    found = world.audit(tmp_path / "store", *more, data="few")
    assert found.code == 0
    (source,) = (world.root / "few").iterdir()
    shapes = {row["id"]: row["shape"] for row in pq.read_table(source).to_pylist()}
    rejects = pq.read_table(found.folder / "rejects.parquet").to_pylist()
    assert {r["sample_id"] for r in rejects} == {i for i, shape in shapes.items() if shape == "square"} != set()
    assert {r["reason"] for r in rejects} == {"no_class"}
    assert "'square' is no class of the model; expected a number in 0 ... 2, or a name such as" in rejects[0]["message"]
    assert set(found.features()[0]) == {i for i, shape in shapes.items() if shape != "square"}


def test_an_unconditional_model_finds_the_image_it_is_asked_about(world: World, saved, tmp_path):
    """Phi (K + lambda)^-1 phi_q goes to e_q for a training image with k > N and lambda to 0: its own score is 1."""
    (source,) = (world.root / "few").iterdir()
    row = pq.read_table(source).to_pylist()[5]
    (tmp_path / "asked.png").write_bytes(row["image"]["bytes"])
    concept = f"concepts=[{{name: it, scope: local, image: {tmp_path}/asked.png}}]"
    more = ["model=ddpm", f"model.path={saved('ddpm')}", "data.caption_column=''", "damping=1e-6", concept]
    found = world.audit(tmp_path / "store", *more, data="few", method="trak")
    assert found.code == 0
    first, second = found.top("trak")[:2]
    assert first["sample_id"] == row["id"]
    assert first["score"] == pytest.approx(1, abs=0.02)
    assert abs(second["score"]) < 0.02


def test_an_unconditional_model_is_asked_by_examples_and_by_a_classifier(world: World, saved, tmp_path, capsys):
    """A DDPM without any condition, by rows whose concept reward becomes that of what is given."""
    path = saved("ddpm")
    side = json.loads((path / "unet/config.json").read_text())["sample_size"]
    save_file(
        {"weight": torch.randn(2, 3 * side**2, generator=torch.Generator().manual_seed(0)), "bias": torch.zeros(2)},
        tmp_path / "head.safetensors",
        {"architecture": "linear", "classes": json.dumps(["yes", "no"])},
    )
    (source,) = (world.root / "few").iterdir()
    for i, row in enumerate(pq.read_table(source).to_pylist()[:3]):
        (tmp_path / f"pictures/{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"pictures/{i}.png").write_bytes(row["image"]["bytes"])
    concepts = (
        f"{{name: shown, examples: [{tmp_path}/pictures], samples: 2}}",
        f"{{name: judged, classifier: {tmp_path}/head.safetensors, shows: 'yes', samples: 2}}",
    )
    more = ["model=ddpm", f"model.path={path}", "data.caption_column=''", f"concepts=[{', '.join(concepts)}]"]
    found = world.audit(tmp_path / "store", *more, data="few", method="concept_a")
    assert found.code == 0
    scores = [found.scores("concept_a", name) for name in ("shown", "judged")]
    assert all(len(set(one.values())) == 16 for one in scores), "samples score alike"
    assert "concept    judged: what " in capsys.readouterr().out


def test_an_adapter_alone_is_attributed_and_is_part_of_the_fingerprint(world: World, tmp_path, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
        adapted = get_peft_model(small.latent_pipeline(0, 16).unet, config)
    adapted.save_pretrained(tmp_path / "lora")
    ours = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    more = [f"model.lora={tmp_path}/lora", "model.parameters=lora"]
    found = world.audit(tmp_path / "store", *more, data="few")
    assert found.code == 0
    assert f": {ours:,} attributable parameters in " in capsys.readouterr().out
    settings = json.loads(next((tmp_path / "store/features").glob("*/feature_set.json")).read_text())["settings"]
    assert {name for name in settings["model"] if name.startswith("lora/")} == {
        "lora/adapter_config.json", "lora/adapter_model.safetensors"}  # fmt: skip
