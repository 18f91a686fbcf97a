"""What a family refuses beyond a broken directory (`test_directories.py`), with the remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from concept_trak.concept import Concept, query_batch
from concept_trak.models import load, small
from tests.models.families import FAMILIES, seeded

LONG = "a red circle a red circle a red circle"  # 9 words and the two tokens around them


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directories of the families that are refused something here."""
    paths = {name: tmp_path_factory.mktemp(name) for name in ("stable_diffusion_eps", "sdxl", "sd3_t5")}
    for name, path in paths.items():
        seeded(FAMILIES[name].build).save_pretrained(path)
    return paths


def edit(file, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ["stable_diffusion_eps", "sdxl", "sd3_t5"])
@pytest.mark.parametrize("texts", [(LONG, "a circle"), ("a circle", LONG)])
def test_a_concept_longer_than_the_model_reads_is_refused_and_a_caption_is_cut(made, name, texts):
    denoiser = load(str(made[name]))
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
    with pytest.raises(ValueError, match=rf"model' lacks {part}; a text-to-image pipeline has .*{part}"):
        load(str(model))


def test_a_flow_without_its_scheduler_is_refused(made, tmp_path):
    model = shutil.copytree(made["sd3_t5"], tmp_path / "model")
    shutil.rmtree(model / "scheduler")
    small.scheduler("epsilon").save_pretrained(model / "scheduler")
    edit(model / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    expected = r"scheduler is a DDIMScheduler, but the model is a rectified flow; .* Save the pipeline with that"
    with pytest.raises(ValueError, match=expected):
        load(str(model))


def test_levels_that_depend_on_the_image_are_refused(made, tmp_path):
    model = shutil.copytree(made["sd3_t5"], tmp_path / "model")
    edit(model / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(ValueError, match=r"with use_dynamic_shifting and invert_sigmas false"):
        load(str(model))


def test_another_prediction_type_is_refused_by_every_family_of_eps_and_v(made, tmp_path):
    model = shutil.copytree(made["sdxl"], tmp_path / "model")
    edit(model / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match=r"prediction_type='sample'; .*prediction_type epsilon or v_prediction"):
        load(str(model))


def test_pickled_weights_of_the_second_encoder_are_not_read(made, tmp_path):
    model = shutil.copytree(made["sdxl"], tmp_path / "model")
    (file,) = (model / "text_encoder_2").glob("*.safetensors")
    torch.save(load_file(file), model / "text_encoder_2/pytorch_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match=r"text_encoder_2 holds no \.safetensors weights; convert them"):
        load(str(model))


def test_pixart_with_t5_is_refused_rather_than_asked_without_its_mask(made, tmp_path):
    FAMILIES["pixart"].build().save_pretrained(tmp_path)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(tmp_path / part)
        shutil.copytree(made["sd3_t5"] / f"{part}_3", tmp_path / part)
    edit(tmp_path / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    edit(tmp_path / "model_index.json", tokenizer=["transformers", "T5Tokenizer"])
    with pytest.raises(
        ValueError, match=r"listens to a T5 encoder, whose padding it masks, which is not supported yet"
    ):
        load(str(tmp_path))


def test_a_transformer_told_sizes_is_refused(tmp_path):
    pipe = FAMILIES["pixart"].build()
    config = dict(pipe.transformer.config) | {"use_additional_conditions": True}
    pipe.transformer = type(pipe.transformer).from_config(config)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"listens to image sizes, which is not supported yet"):
        load(str(tmp_path))
