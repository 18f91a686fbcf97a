"""What a family refuses beyond a broken directory (`test_directories.py`), with the remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.query import query_batch, require_conditioning, require_conditions
from concept_trak.models import load_model, small
from tests.models.families import FAMILIES, seeded

LONG = "a red circle a red circle a red circle"  # 9 words and the two tokens around them


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directories of the families that are refused something here."""
    paths = {
        name: tmp_path_factory.mktemp(name)
        for name in ("stable_diffusion_eps", "sdxl", "sd3_t5", "dit", "unet_2d", "ddpm")
    }
    for name, path in paths.items():
        seeded(FAMILIES[name].build).save_pretrained(path)
    return paths


def edit(file, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ["stable_diffusion_eps", "sdxl", "sd3_t5"])
@pytest.mark.parametrize("texts", [(LONG, "a circle"), ("a circle", LONG)])
def test_a_concept_longer_than_the_model_reads_is_refused_and_a_caption_is_cut(made, name, texts):
    denoiser = load_model(str(made[name]))
    concept = Concept("red", prompt=texts[0], without_prompt=texts[1], samples=1)
    expected = r"^concept 'red': 'a red .*' has 11 tokens, and the model's text_encoder reads 8, .* Shorten it\.$"
    with pytest.raises(ValueError, match=expected):
        query_batch(denoiser, concept)
    assert len(denoiser.encode([LONG])["text"]) == 1, "captions are cut, as in training"
    fits = Concept("red", prompt="red " * 6, without_prompt="", samples=1)
    assert query_batch(denoiser, fits).ids == ("query-0",), "six words and two ends are the limit itself"


@pytest.mark.parametrize(
    ("name", "part"), [("sdxl", "text_encoder_2"), ("sdxl", "tokenizer_2"), ("sd3_t5", "text_encoder")]
)
def test_a_missing_text_encoder_is_named(made, tmp_path, name, part):
    model = shutil.copytree(made[name], tmp_path / "model")
    shutil.rmtree(model / part)
    with pytest.raises(UserError, match=rf"model' lacks {part}; it needs .*{part}"):
        load_model(str(model))


def test_a_flow_without_its_scheduler_is_refused(made, tmp_path):
    model = shutil.copytree(made["sd3_t5"], tmp_path / "model")
    shutil.rmtree(model / "scheduler")
    small.scheduler("epsilon").save_pretrained(model / "scheduler")
    edit(model / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    expected = r"scheduler is a DDIMScheduler, but the model is a rectified flow; .* Save the pipeline with that"
    with pytest.raises(UserError, match=expected):
        load_model(str(model))


def test_a_consistency_model_is_refused_with_its_teacher(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaSprintPipeline"}))
    with pytest.raises(
        UserError, match=r"(?s)is a SanaSprintPipeline, .*set model\.path to the SANA that it was distil"
    ):
        load_model(str(tmp_path))


def test_an_ip_adapter_is_refused_in_a_pipeline_and_as_a_file(tmp_path):
    """Of diffusers' own layers: as `load_ip_adapter` puts them into a UNet, and as its file has them."""
    pipe = seeded(FAMILIES["controlnet"].build)
    layers = [name.removesuffix(".processor") for name in pipe.unet.attn_processors if "attn2" in name]
    width, wide = 64, pipe.unet.config.cross_attention_dim
    picture = {"proj.weight": torch.zeros(4 * wide, width), "proj.bias": torch.zeros(4 * wide)}
    picture |= {"norm.weight": torch.ones(wide), "norm.bias": torch.zeros(wide)}
    sizes = [pipe.unet.get_submodule(name).to_k.weight for name in layers]
    keys = {f"{2 * i + 1}.to_{kind}_ip.weight": torch.zeros_like(w) for i, w in enumerate(sizes) for kind in "kv"}
    pipe.unet._load_ip_adapter_weights([{"image_proj": picture, "ip_adapter": keys}], low_cpu_mem_usage=False)
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"unet holds an IP-Adapter, whose condition is a reference picture; .* Save the"
    ):
        load_model(str(tmp_path / "model"))
    file = {f"image_proj.{n}": t for n, t in picture.items()} | {f"ip_adapter.{n}": t for n, t in keys.items()}
    save_file(file, tmp_path / "ip.safetensors")
    seeded(FAMILIES["stable_diffusion_eps"].build).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"^model\.lora='.*' is an IP-Adapter, whose condition is a reference picture;"):
        load_model(str(tmp_path / "base"), lora=str(tmp_path / "ip.safetensors"))


def test_levels_that_run_the_other_way_are_refused(made, tmp_path):
    model = shutil.copytree(made["sd3_t5"], tmp_path / "model")
    edit(model / "scheduler/scheduler_config.json", invert_sigmas=True)
    with pytest.raises(UserError, match=r"of 1000 steps with invert_sigmas false\."):
        load_model(str(model))


@pytest.mark.parametrize("name", ["stable_diffusion_eps", "sd3_t5"])
def test_a_resolution_is_that_of_the_images_and_has_whole_patches(made, name):
    model = load_model(str(made[name]), resolution=32)
    assert (model.resolution, model.shape) == (32, (4, 16, 16))
    assert model.to_latent(torch.zeros(1, 3, 32, 32)).shape[1:] == model.shape
    step = {"stable_diffusion_eps": 2, "sd3_t5": 4}[name]
    with pytest.raises(UserError, match=rf"^model\.resolution=33; expected a multiple of {step} for this model$"):
        load_model(str(made[name]), resolution=33)


def test_another_prediction_type_is_refused_by_every_family_of_eps_and_v(made, tmp_path):
    model = shutil.copytree(made["sdxl"], tmp_path / "model")
    edit(model / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(UserError, match=r"prediction_type='sample'; .*prediction_type epsilon or v_prediction"):
        load_model(str(model))


def test_pickled_weights_of_the_second_encoder_are_not_read(made, tmp_path):
    model = shutil.copytree(made["sdxl"], tmp_path / "model")
    (file,) = (model / "text_encoder_2").glob("*.safetensors")
    torch.save(load_file(file), model / "text_encoder_2/pytorch_model.bin")
    file.unlink()
    with pytest.raises(
        ValueError, match=r"text_encoder_2 holds no \.safetensors weights named model\.safetensors, .*; convert them"
    ):
        load_model(str(model))


def test_classes_that_are_none_are_refused_with_those_there_are(made):
    names = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "crane"}
    edit(made["dit"] / "model_index.json", id2label=names)  # as published; diffusers reads it and does not write it
    model = load_model(str(made["dit"]))
    expected = (
        r"'shark' is no class of the model; expected a number in 0 \.\.\. 2, or a name such as 'tench', 'Tinca tinca'"
    )
    with pytest.raises(UserError, match=expected):
        model.encode(["shark"])
    with pytest.raises(UserError, match=r"'3' is no class of the model"):
        model.encode(["3"])  # the empty class is the condition ""
    assert model.encode(["tench", "Tinca tinca", "0", "crane", ""])["label"].tolist() == [0, 0, 0, 2, 3]


def test_a_unet_without_an_empty_class_needs_another_negative(made):
    with pytest.raises(UserError, match=r"no empty class, .* set model\.negative=other_label"):
        load_model(str(made["unet_2d"]))
    model = load_model(str(made["unet_2d"]), negative="other_label")
    assert model.combinations == ("0", "1", "2", "3")
    with pytest.raises(UserError, match=r"the model has no empty class, .* without_labels"):
        model.encode([""])


def test_classes_that_are_no_numbers_are_refused(made, tmp_path):
    model = shutil.copytree(made["ddpm"], tmp_path / "model")
    edit(model / "unet/config.json", class_embed_type="identity")
    with pytest.raises(UserError, match=r"class_embed_type='identity', whose classes are no numbers; expected"):
        load_model(str(model))


PROMPT = {"prompt": "a dog", "without_prompt": "a"}
LABELS = {"labels": "1", "without_labels": "2"}
ALONE = {"scope": "local", "image": "dog.png"}


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        (
            "dit",
            PROMPT,
            r"it has prompt='a dog', and the model's conditioning is a class: give labels and without_labels",
        ),
        ("dit", ALONE, r"it has neither prompt nor labels, and the model's conditioning is a class"),
        (
            "ddpm",
            PROMPT,
            r"it has prompt='a dog', .* no conditioning: give examples or a classifier, or ask about an",
        ),
        ("ddpm", LABELS, r"it has labels='1', and the model has no conditioning"),
        ("sdxl", LABELS, r"it has labels='1', and the model's conditioning is text: give prompt and without_prompt"),
        ("sdxl", ALONE, r"it has neither prompt nor labels, and the model's conditioning is text"),
    ],
)
def test_a_concept_outside_the_models_conditioning_is_refused(made, name, asked, says):
    with pytest.raises(ValueError, match=rf"^concept 'dog': {says}"):
        require_conditioning(load_model(str(made[name])), Concept("dog", **asked))


def test_a_concept_in_the_models_conditioning_is_not(made):
    for name, asked in (("dit", LABELS), ("ddpm", ALONE), ("sdxl", PROMPT)):
        require_conditioning(load_model(str(made[name])), Concept("dog", **asked))


@pytest.mark.parametrize("row", [name for name in METHODS if name not in ("trak", "d_trak", "das")])
def test_a_row_between_conditions_is_refused_where_there_are_none(made, row):
    model = load_model(str(made["ddpm"]))
    with pytest.raises(ValueError, match=rf"method={row}: its \w+ side, \w+_\w+, points from one condition to another"):
        require_conditions(model, {row: METHODS[row]})
    require_conditions(model, {"das": METHODS["das"]})
    require_conditions(load_model(str(made["dit"])), METHODS)
