"""An IP-Adapter: its own parameters alone, samples with a reference picture or their own, and what is refused."""

import json
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.attribution.batch_size import _LivingBytes
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.features import train_features, training_batch
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import query_batch, require_conditioning
from concept_trak.attributor import Attributor, dataset
from concept_trak.data.image import center_crop, to_image, to_tensor
from concept_trak.models import load_model
from concept_trak.models.encode import open_query, read_concept_files
from concept_trak.models.offload import weight_bytes
from tests.data import files
from tests.data.files import IMAGE, encoded, noise, write
from tests.models.families import FAMILIES, images, seeded
from tests.tolerances import EXACT64

COLUMN = "conditioning_image"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PROJECTION = "encoder_hid_proj.image_projection_layers."


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The pipeline as diffusers has it, and the folder that it saves."""
    pipe, folder = seeded(FAMILIES["ip_adapter"].build), tmp_path_factory.mktemp("ip_adapter")
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.image_encoder.eval()
    return pipe.to(torch.float64), folder


@pytest.fixture(scope="module")
def model(saved):
    return load_model(str(saved[1]), precision="float64")


@pytest.fixture
def reference(tmp_path) -> str:
    noise(16, 16, 9).save(tmp_path / "reference.png")
    return str(tmp_path / "reference.png")


def embedding(pipe, picture: Image.Image) -> torch.Tensor:
    with torch.no_grad():
        return pipe.encode_image(picture, "cpu", 1)[0]


def edited(saved, folder: Path, change) -> str:
    """A copy of the pipeline after a change of the tensors of its UNet."""
    shutil.copytree(saved[1], folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return str(folder)


def renamed(old: str, new: str):
    def change(tensors) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def test_both_rows_of_a_guided_step_are_those_of_diffusers_own_pipeline(saved, model):
    """The first row of the pipeline's batch is its negative: the empty caption with an embedding of zeros."""
    pipe, calls = saved[0], []
    handle = pipe.unet.register_forward_hook(lambda network, args, output: calls.append((args, output[0])))
    x_t = images(model, 1)[:, :1, :8, :8].expand(1, *model.shape)
    options = {"ip_adapter_image": to_image(images(model, 1)[0]), "guidance_scale": 5.0, "output_type": "latent"}
    with torch.no_grad():
        pipe("a red circle", num_inference_steps=20, latents=x_t, **options)
    handle.remove()
    (state, time), eps = calls[0]
    cond = model.encode(["a red circle"]) | model.encode_image(images(model, 1))
    negative = cond | model.encode([""]) | model.empty_image(1)
    for row, own in enumerate((negative, cond)):
        with torch.no_grad():
            error = (model(state[row : row + 1], int(time), own).eps[0] - eps[row]).norm() / eps[row].norm()
        assert error < 1e-6, f"row {row} differs by {error:.1e}"  # the pipeline passes its time in float32
    assert (eps[0] - eps[1]).norm() > EXACT64 * eps.norm()


def test_a_picture_is_prepared_as_the_pipeline_prepares_its_file(saved, model):
    """Of another shape than CLIP's, in any precision: 8 bits survive even bfloat16."""
    for size in ((16, 16), (24, 16), (16, 40)):
        picture = noise(*size, 3)
        pixels = to_tensor(picture)[None]
        expected = embedding(saved[0], picture)
        for own in (pixels.double(), pixels.bfloat16()):
            torch.testing.assert_close(model.encode_image(own)["reference"], expected, rtol=EXACT64, atol=EXACT64)


def test_features_of_a_data_set_are_those_of_its_own_pictures_or_of_a_column(saved, model, tmp_path):
    """Against batches made by hand, one sample at a time; a negative has the empty caption and no picture."""
    pictures, seconds = ([noise(16, 16, first + n) for n in range(2)] for first in (0, 10))
    own, other = ([{"bytes": encoded(p), "path": None} for p in kind] for kind in (pictures, seconds))
    captions = ["a red circle", "a blue square"]
    uri = write(tmp_path / "a.parquet", files.rows(2, image=own, caption=captions, **{COLUMN: other}),
                kinds={COLUMN: IMAGE})  # fmt: skip
    method, projector = METHODS["caption_trak"], Projector(dim=64)
    method = replace(method, train=replace(method.train, times=(400,)))
    for column, references in (("", pictures), (COLUMN, seconds)):
        attributor = Attributor(model, method=method, projector=projector, batch_size=2)
        attributor.fit(dataset(uri, id_column="id", conditioning_image_column=column))
        fitted = attributor._fitted
        assert fitted is not None
        for i, (picture, second, caption) in enumerate(zip(pictures, references, captions, strict=True)):
            x_0 = model.to_latent(to_tensor(picture)[None].double())
            cond = model.encode([caption]) | {"reference": embedding(saved[0], second)}
            batch = training_batch(model, method, [f"s{i}"], [caption], x_0, cond, 0)
            assert (batch.negative["reference"] == 0).all()
            (expected,) = train_features(model, projector, [method], batch, 0)
            error = (fitted.phi[i] - expected.phi[0].float()).norm() / fitted.phi[i].norm()
            assert error < 1e-6, f"sample {i} differs by {error:.1e}"  # the attributor keeps float32


def test_conditions_of_a_concept_share_its_picture_and_the_empty_one_has_none(saved, model, reference):
    expected = embedding(saved[0], Image.open(reference)).expand(3, -1)
    concept = Concept("red", prompt="a red circle", without_prompt="a circle", samples=3, conditioning_image=reference)
    batch = open_query(model, concept, read_concept_files(model, concept), 2)
    assert batch.without is not None
    for cond in (batch.cond, batch.without):
        torch.testing.assert_close(cond["reference"], expected, rtol=EXACT64, atol=EXACT64)
    assert (batch.negative["reference"] == 0).all()
    assert "(both with the image " in concept.question
    concept = replace(concept, without_prompt="")
    batch = open_query(model, concept, read_concept_files(model, concept), 2)
    assert batch.without is not None
    assert (batch.without["reference"] == 0).all()
    torch.testing.assert_close(batch.cond["reference"], expected, rtol=EXACT64, atol=EXACT64)
    assert " (with the image " in concept.question


def test_a_concept_of_an_image_is_its_own_reference(saved, model, tmp_path):
    noise(40, 16, 5).save(tmp_path / "wide.png")
    concept = Concept("wide", scope="local", image=str(tmp_path / "wide.png"), prompt="a red circle")
    require_conditioning(model, concept)
    batch = open_query(model, concept, read_concept_files(model, concept), 2)
    expected = embedding(saved[0], center_crop(Image.open(tmp_path / "wide.png"), 16))
    torch.testing.assert_close(batch.cond["reference"], expected, rtol=EXACT64, atol=EXACT64)


def test_a_concept_of_a_prompt_needs_a_picture(model):
    with pytest.raises(UserError, match=r"^concept 'red': the model takes an image beside the text: set conditioning_"):
        require_conditioning(model, Concept("red", prompt="a red circle"))
    with pytest.raises(UserError, match=r"and only audits and an Attributor give it one"):
        query_batch(model, Concept("red", prompt="a red circle"))


def test_the_encoder_and_its_preparation_are_part_of_the_identity_and_of_what_is_read(saved, model, tmp_path):
    parts = {
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "feature_extractor/preprocessor_config.json",
    }
    assert parts <= set(model.identity())
    assert model.unused_files() == []
    folder = shutil.copytree(saved[1], tmp_path / "bare")
    shutil.rmtree(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"feature_extractor": [None, None]}))
    bare, image = load_model(str(folder), precision="float64"), images(model, 1)
    assert torch.equal(bare.encode_image(image)["reference"], model.encode_image(image)["reference"])


def test_an_adapter_on_a_fine_tune_of_its_base_is_part_of_the_identity(saved, model, tmp_path):
    """The fine-tune's file has the name of the base's, which has the adapter."""
    tuned = {key: 1.01 * value for key, value in load_file(saved[1] / WEIGHTS).items() if key not in model.parameters}
    save_file(tuned, tmp_path / "diffusion_pytorch_model.safetensors")
    other = edited(saved, tmp_path / "other", lambda state: state[f"{PROJECTION}0.norm.bias"].add_(1))
    ours, theirs = (load_model(str(path), weights=str(tmp_path / "diffusion_pytorch_model.safetensors"))
                    for path in (saved[1], other))  # fmt: skip
    assert torch.equal(ours.network.conv_in.weight, tuned["conv_in.weight"])
    assert list(ours.parameters) == list(model.parameters)
    assert len({tuple(sorted(m.identity().items())) for m in (ours, theirs, model)}) == 3


def test_an_offloaded_image_encoder_comes_to_the_device_to_encode_and_leaves(model):
    own = copy(model)
    own.offload_encoders()
    with _LivingBytes() as counter:
        cond = own.encode_image(images(model, 2))
    assert counter.most > weight_bytes(own.image_encoder.model), "it encodes on the host"
    assert torch.equal(cond["reference"], model.encode_image(images(model, 2))["reference"])
    assert own.image_encoder.model in own._encoders


def test_a_pipeline_without_the_adapter_is_its_base(saved, tmp_path):
    """As diffusers saves what it opened of such a folder: it leaves the adapter out."""

    def change(tensors) -> None:
        for key in [key for key in tensors if "_ip." in key or key.startswith(PROJECTION)]:
            del tensors[key]

    folder = Path(edited(saved, tmp_path / "base", change))
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = [
        "transformers",
        "ViTImageProcessor",
    ]  # of a class that is never loaded, and not needed
    (folder / "model_index.json").write_text(json.dumps(index))
    base = load_model(str(folder))
    assert not base.takes_image
    assert not any(name.startswith("image_encoder") for name in base.identity())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({f"{PROJECTION}1.norm.bias": torch.zeros(1)}), "has several IP-Adapters; save the"),
        (lambda state: state.update({f"{PROJECTION}0.latents": torch.zeros(1)}), "has an IP-Adapter Plus, which is"),
        (renamed("0.image_embeds", "0.ff.net.0.proj"), "has an IP-Adapter Full Face or FaceID, which is not read"),
        (renamed("0.image_embeds", "0.proj.net.0.proj"), "has an IP-Adapter FaceID Plus, which is not read"),
        (renamed(f"{PROJECTION}0.norm", f"{PROJECTION}0.other"), "has layers of an IP-Adapter and not its proj"),
        (renamed("mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_ip", "other.processor.to_v_ip"),
         r"does not fit the UNet: 2 tensors are missing, not known to it or of another shape \(mid_block"),
        (lambda state: state[f"{PROJECTION}0.norm.bias"].fill_(torch.nan), "0.norm.bias has weights that are not"),
    ],
)  # fmt: skip
def test_other_adapters_are_refused_by_name(saved, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_model(edited(saved, tmp_path / "other", change))


def test_another_image_encoder_is_refused(saved, tmp_path):
    def narrow(tensors) -> None:
        tensors[f"{PROJECTION}0.image_embeds.weight"] = tensors[f"{PROJECTION}0.image_embeds.weight"][:, :4].clone()

    with pytest.raises(
        UserError, match=r"reads embeddings of 4 numbers, and image_encoder computes 8; expected the im"
    ):
        load_model(edited(saved, tmp_path / "narrow", narrow))
    folder = shutil.copytree(saved[1], tmp_path / "none")
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(UserError, match=r"lacks image_encoder; it needs unet, text_encoder, tokenizer, image_encoder"):
        load_model(str(folder))
