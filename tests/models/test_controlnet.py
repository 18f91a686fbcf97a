"""A ControlNet: its own parameters alone, samples and concepts with an image, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.features import train_features, training_batch
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import query_batch, require_conditioning
from concept_trak.attributor import Attributor, dataset
from concept_trak.data.image import to_tensor
from concept_trak.models import load_model
from concept_trak.models.encode import open_query, read_concept_files
from tests.data import files
from tests.data.files import IMAGE, encoded, noise, write
from tests.models.families import FAMILIES, seeded
from tests.tolerances import EXACT64

COLUMN = "conditioning_image"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("controlnet")
    seeded(FAMILIES["controlnet"].build).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(path):
    return load_model(str(path), precision="float64")


@pytest.fixture
def edges(tmp_path) -> str:
    noise(16, 16, 9).save(tmp_path / "edges.png")
    return str(tmp_path / "edges.png")


def test_only_the_controlnet_is_attributable_and_has_the_names_of_its_own_file(path, model):
    own = ControlNetModel.from_pretrained(path / "controlnet", low_cpu_mem_usage=False)
    assert list(model.parameters) == [f"controlnet.{name}" for name, _ in own.named_parameters()]
    assert not any(p.requires_grad for p in model.network.unet.parameters())
    few = load_model(str(path), parameters="cross_attention")
    assert few.parameters
    assert all(name.startswith("controlnet.") and ".attn2." in name for name in few.parameters)


def test_the_controlnets_file_is_part_of_the_identity_and_of_what_is_read(path, model):
    assert {"controlnet/config.json", "controlnet/diffusion_pytorch_model.safetensors"} <= set(model.identity())
    assert not [name for name in model.unused_files() if name.startswith("controlnet")]


def test_both_conditions_of_a_concept_and_its_negative_have_its_image(model, edges):
    concept = Concept("red", prompt="a red circle", without_prompt="a circle", samples=3, conditioning_image=edges)
    batch = open_query(model, concept, read_concept_files(model, concept), 2)
    image = (to_tensor(Image.open(edges)).double() + 1) / 2
    for cond in (batch.cond, batch.without, batch.negative):
        assert cond is not None
        assert (cond["control"] == image).all()
        assert cond["control"].shape == (3, 3, 16, 16)
    assert "(both with the image " in concept.question


def test_features_of_a_data_set_are_those_of_its_pairs_of_images(model, tmp_path):
    """Against batches made by hand, one sample at a time, with each sample's own image also in its negative."""
    pictures, seconds = ([noise(16, 16, first + n) for n in range(2)] for first in (0, 10))
    encoded_images, controls = ([{"bytes": encoded(p), "path": None} for p in kind] for kind in (pictures, seconds))
    captions = ["a red circle", "a blue square"]
    values = files.rows(2, image=encoded_images, caption=captions, **{COLUMN: controls})
    uri = write(tmp_path / "a.parquet", values, kinds={COLUMN: IMAGE})
    method, projector = METHODS["caption_trak"], Projector(dim=64)
    method = replace(method, train=replace(method.train, times=(400,)))
    attributor = Attributor(model, method=method, projector=projector, batch_size=2)
    attributor.fit(dataset(uri, id_column="id", conditioning_image_column=COLUMN))
    fitted = attributor._fitted
    assert fitted is not None
    for i, (picture, second, caption) in enumerate(zip(pictures, seconds, captions, strict=True)):
        x_0 = model.to_latent(to_tensor(picture)[None].double())
        cond = model.encode([caption]) | {"control": (to_tensor(second)[None].double() + 1) / 2}
        batch = training_batch(model, method, [f"s{i}"], [caption], x_0, cond, 0)
        assert torch.equal(batch.negative["control"], cond["control"])
        (expected,) = train_features(model, projector, [method], batch, 0)
        error = (fitted.phi[i] - expected.phi[0].float()).norm() / fitted.phi[i].norm()
        assert error < 1e-6, f"sample {i} differs by {error:.1e}"  # the attributor keeps float32
    assert (fitted.phi[0] - fitted.phi[1]).norm() > EXACT64 * fitted.phi[0].norm()


def test_a_concept_needs_an_image_exactly_if_the_model_takes_one(model, edges, tmp_path):
    with pytest.raises(UserError, match=r"^concept 'red': the model takes an image beside the text: set conditioning_"):
        require_conditioning(model, Concept("red", prompt="a red circle"))
    with pytest.raises(UserError, match=r"and only audits and an Attributor give it one"):
        query_batch(model, Concept("red", prompt="a red circle"))
    seeded(FAMILIES["stable_diffusion_eps"].build).save_pretrained(tmp_path / "plain")
    plain = load_model(str(tmp_path / "plain"))
    with pytest.raises(UserError, match=r"has conditioning_image='.*edges\.png', and the model takes no image; remove"):
        require_conditioning(plain, Concept("red", prompt="a red circle", conditioning_image=edges))
    values = files.rows(1, **{COLUMN: [{"bytes": encoded(noise(16, 16)), "path": None}]})
    uri = write(tmp_path / "a.parquet", values, kinds={COLUMN: IMAGE})
    with pytest.raises(UserError, match=r"conditioning_image_column is set, and the model takes no image beside the"):
        Attributor(plain).fit(dataset(uri, conditioning_image_column=COLUMN))
    with pytest.raises(
        UserError, match=r"takes a conditioning image beside the caption, and the samples have none; giv"
    ):
        Attributor(model).fit(dataset(uri))


@pytest.mark.parametrize(
    ("family", "setting", "value", "message"),
    [
        (
            "controlnet_sd3",
            "extra_conditioning_channels",
            1,
            "takes 1 channels beside the image, such as a mask, which",
        ),
        ("controlnet_flux", "num_mode", 2, r"is a union of several ControlNets \(num_mode\), .* with num_mode null"),
        ("controlnet_flux", "conditioning_embedding_channels", 4, "is a ControlNet that reads pixels "),
    ],
)
def test_controlnets_with_other_inputs_are_refused(tmp_path, family, setting, value, message):
    seeded(FAMILIES[family].build).save_pretrained(tmp_path)
    config = tmp_path / "controlnet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {setting: value}))
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path), **FAMILIES[family].ways)


def test_positions_of_the_transformer_are_not_attributable(tmp_path):
    """A ControlNet of 3.5 has none of its own; its pipeline gives it those of the transformer."""
    seeded(FAMILIES["controlnet_sd3_5"].build).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    network = model.network
    assert torch.equal(network.controlnet.pos_embed.proj.weight, network.transformer.pos_embed.proj.weight)
    assert not any("pos_embed." in name for name in model.parameters)
    assert "controlnet.pos_embed_input.proj.weight" in model.parameters


def test_several_controlnets_are_refused(path, tmp_path):
    folder = shutil.copytree(path, tmp_path / "several")
    index = json.loads((folder / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "MultiControlNetModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"names MultiControlNetModel as the class of controlnet; expected one of Contro"
    ):
        load_model(str(folder))
