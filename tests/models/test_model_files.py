"""Models as people keep them: half-precision file names, shards, stray files, old names, and what is hostile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from transformers import CLIPTextModel, T5EncoderModel

from concept_trak import UserError
from concept_trak.models import load_model
from concept_trak.models.pipeline_folder import choose_files
from tests.models.families import FAMILIES, seeded


@pytest.fixture
def model(saved, tmp_path) -> Path:
    return shutil.copytree(saved("latents"), tmp_path / "model")


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def renamed(folder: Path, variant: str) -> None:
    """Every weight file under the name of a variant, in half the precision."""
    for file in [*folder.rglob("*.safetensors")]:
        halves = {name: value.half() for name, value in load_file(file).items()}
        save_file(halves, file.with_suffix(f".{variant}.safetensors"), {"format": "pt"})
        file.unlink()


def test_weights_that_exist_in_half_precision_alone_are_read(saved, model):
    renamed(model, "fp16")
    ours, whole = load_model(str(model)), load_model(str(saved("latents")))
    for name, p in whole.parameters.items():
        assert torch.equal(ours.parameters[name], p.half().float())
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in ours.identity()


def test_two_variants_and_no_plain_weights_are_refused_with_both_names(model):
    plain = model / "unet/diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "non_ema"):
        shutil.copy(plain, plain.with_suffix(f".{variant}.safetensors"))
    assert load_model(str(model)), "plain weights are taken before any variant"
    plain.unlink()
    with pytest.raises(
        UserError, match="holds weights of the variants fp16, non_ema, and none without a variant; keep"
    ):
        load_model(str(model))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_shards_with_an_index_are_read(saved, model, part, variant):
    whole = load_model(str(saved("latents")))
    kind = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}[part]
    options = {"low_cpu_mem_usage": False} if part == "unet" else {}
    network = kind.from_pretrained(model / part, **options)
    shutil.rmtree(model / part)
    network.save_pretrained(model / part, max_shard_size="100KB", variant=variant)
    ours = load_model(str(model))
    names = [name for name in ours.identity() if name.startswith(f"{part}/")]
    assert sum("-of-" in name for name in names) > 1
    assert any(".index." in name for name in names)
    x_t = torch.zeros(1, *ours.shape)
    with torch.no_grad():
        for d in (ours, whole):
            d.network.eval()
        assert torch.equal(ours(x_t, 500, ours.encode(["red"])).eps, whole(x_t, 500, whole.encode(["red"])).eps)


def test_files_that_the_pipeline_does_not_load_are_no_part_of_its_identity(model):
    before = load_model(str(model)).identity()
    assert load_model(str(model)).unused_files() == []
    for stray in ("unet/.DS_Store", "README.md", "unet/README.md", "vae/notes.pdf", "v1-5-pruned.safetensors",
                  "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
                  "tokenizer/.gitattributes", "text_encoder/flax_model.msgpack"):  # fmt: skip
        (model / stray).write_bytes(b"anything")
    assert load_model(str(model)).identity() == before
    assert len(load_model(str(model)).unused_files()) == 9, "each is named before a run"
    assert "unet/README.md" in load_model(str(model)).unused_files()


def test_a_whole_file_beside_shards_is_what_the_library_would_read():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert choose_files("text_encoder", [*shards, "model.safetensors", "config.json"]).weights == ("model.safetensors",)
    assert choose_files("text_encoder", [*shards, "config.json"]).weights == tuple(sorted(shards))
    shards = [name.replace("model", "diffusion_pytorch_model") for name in shards]
    chosen = choose_files("unet", [*shards, "diffusion_pytorch_model.safetensors"])
    assert chosen.weights == tuple(sorted(shards))


def test_a_network_without_a_size_is_refused_with_the_setting(model):
    edit(model / "unet/config.json", sample_size=None)
    with pytest.raises(UserError, match=r"unet/config.json has sample_size null; set it to the side of the latents"):
        load_model(str(model))


def test_a_size_that_is_no_square_is_the_shape_of_states(model):
    edit(model / "unet/config.json", sample_size=[6, 8])
    denoiser = load_model(str(model))
    assert denoiser.shape == (4, 6, 8)
    assert denoiser.to_latent(torch.zeros(1, 3, 12, 16)).shape[1:] == denoiser.shape


def test_an_inpainting_network_is_refused_before_its_first_call(model):
    network = UNet2DConditionModel.load_config(model / "unet") | {"in_channels": 9}
    shutil.rmtree(model / "unet")
    UNet2DConditionModel.from_config(network).save_pretrained(model / "unet")
    with pytest.raises(UserError, match=r"takes 9 channels and the VAE has 4; .* An inpainting model"):
        load_model(str(model))


def test_a_tokenizer_with_a_sentencepiece_model_alone_is_read(tmp_path):
    """As PixArt's T5 is published: no tokenizer.json."""
    path = tmp_path / "pixart"
    seeded(FAMILIES["pixart_t5"].build).save_pretrained(path)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a red circle\na blue square\na green triangle\n" * 50)
    SentencePieceTrainer.train(input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=40, pad_id=0,
                               eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False)  # fmt: skip
    encoder = T5EncoderModel.from_pretrained(path / "text_encoder")
    encoder.resize_token_embeddings(40)
    encoder.save_pretrained(path / "text_encoder")
    shutil.rmtree(path / "tokenizer")
    (path / "tokenizer").mkdir()
    shutil.copy(tmp_path / "spiece.model", path / "tokenizer/spiece.model")
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (path / "tokenizer/tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_model(str(path)).text_encoders["text_encoder"].tokenizer
    assert tokenizer.decode(tokenizer("a red circle").input_ids, skip_special_tokens=True) == "a red circle"
    assert "tokenizer/spiece.model" in load_model(str(path)).identity()


OLD = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))


@pytest.mark.parametrize("by", ["model.path", "model.weights"])
def test_the_attentions_old_names_are_the_same_network(tmp_path, by):
    """A DDPM of 2022 calls its attention's matrices query, key, value and proj_attn."""
    path = tmp_path / "ddpm"
    seeded(FAMILIES["ddpm"].build).save_pretrained(path)
    whole = load_model(str(path))
    old = shutil.copytree(path, tmp_path / "old")
    file = old / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    for new, before in OLD:
        state = {key.replace(f".{new}.", f".{before}."): value for key, value in state.items()}
    save_file(state, file, {"format": "pt"})
    assert any(".query." in key for key in state)
    ours = load_model(str(old)) if by == "model.path" else load_model(str(path), weights=str(file))
    for name, p in whole.parameters.items():
        assert torch.equal(ours.parameters[name], p)


def test_weights_that_are_not_finite_are_named(model):
    file = model / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"unet: conv_in\.weight has weights that are not finite in torch\.float32; exp"
    ):
        load_model(str(model))


def test_weights_beyond_float16_name_the_precision(model):
    file = model / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.weight"][0, 0, 0, 0] = 1e6
    save_file(state, file, {"format": "pt"})
    assert load_model(str(model))
    with pytest.raises(UserError, match=r"not finite in torch\.float16: set model\.precision=float32 or bfloat16"):
        load_model(str(model), precision="float16")


def test_a_fine_tune_that_does_not_fit_is_refused_in_one_line(model, tmp_path):
    state = load_file(model / "unet/diffusion_pytorch_model.safetensors")
    state.pop("conv_in.bias")
    state["elsewhere.weight"], state["conv_out.bias"] = torch.zeros(1), torch.zeros(9)
    save_file(state, tmp_path / "tuned.safetensors")
    expected = (
        r"1 tensors are missing \(conv_in.bias, \.\.\.\); 1 are not known to it \(elsewhere.weight, \.\.\.\); 1 have "
        r"another shape \(conv_out.bias, \.\.\.\); expected one that was trained on this base$"
    )
    with pytest.raises(UserError, match=expected):
        load_model(str(model), weights=str(tmp_path / "tuned.safetensors"))
    with pytest.raises(UserError, match=r"is a whole pipeline; set model\.path to it, or model\.weights to its unet"):
        load_model(str(model), weights=str(model))


CLASSES = [
    (
        "tokenizer",
        ["transformers", "AutoTokenizer"],
        "AutoTokenizer as the class of tokenizer; expected one of CLIPTok",
    ),
    ("text_encoder", ["transformers", "AutoModel"], "AutoModel as the class of text_encoder; expected one of CLIPText"),
    (
        "vae",
        ["diffusers", "AutoencoderKLLTXVideo"],
        "AutoencoderKLLTXVideo as the class of vae; expected one of .*AutoencoderKL",
    ),
    ("scheduler", ["diffusers", "DiffusionPipeline"], "DiffusionPipeline as the class of scheduler; expected one of"),
]


@pytest.mark.parametrize(("part", "entry", "expected"), CLASSES)
def test_a_class_outside_the_list_is_never_loaded(model, part, entry, expected):
    edit(model / "model_index.json", **{part: entry})
    with pytest.raises(UserError, match=expected):
        load_model(str(model))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json",
                                  "scheduler/scheduler_config.json"])  # fmt: skip
def test_json_of_any_depth_is_one_message(model, file):
    (model / file).write_text("[" * 100_000)
    with pytest.raises(UserError, match=rf"{file} is not a JSON mapping"):
        load_model(str(model))


@pytest.mark.parametrize(
    "file", ["unet/config.json", "tokenizer/vocab.json", "unet/diffusion_pytorch_model.safetensors"]
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(model, file):
    (model / file).unlink(missing_ok=True)
    os.mkfifo(model / file)
    with pytest.raises(UserError, match=r"is no regular file"):
        load_model(str(model))


def test_a_part_that_is_quantized_in_another_way_is_refused(model):
    edit(model / "unet/config.json", quantization_config={"quant_method": "quanto"})
    with pytest.raises(UserError, match="unet is quantized by quanto, which is not read"):
        load_model(str(model))


def test_loading_prints_nothing_and_runs_no_code_beside_a_tokenizer(model, saved, tmp_path):
    """No note about torchvision or precisions; other warnings still come. transformers asks on the terminal whether to
    run such code, and a `y` on standard input would have run it."""
    marker = tmp_path / "ran"
    (model / "tokenizer/evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    edit(model / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    sd3 = tmp_path / "sd3"
    seeded(FAMILIES["sd3"].build).save_pretrained(sd3)
    program = (
        "import logging, concept_trak.models\n"
        f"concept_trak.models.load_model({str(model)!r})\n"
        f"concept_trak.models.load_model({str(saved('latents'))!r})\n"
        f"concept_trak.models.load_model({str(sd3)!r}, precision='bfloat16')\n"
        "from concept_trak.models import small; small.pixel_pipeline(0)\n"
        "logging.getLogger('transformers.utils.import_utils').warning('a real one')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, check=True)
    assert not marker.exists()
    assert done.stderr in ("[transformers] a real one\n", "a real one\n")
    assert done.stdout == ""


def test_tensors_without_a_place_are_counted(model, caplog):
    file = model / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"extra.weight": torch.zeros(1)}, file, {"format": "pt"})
    with caplog.at_level("WARNING", logger="concept_trak"):
        load_model(str(model))
    assert [r.getMessage() for r in caplog.records if "extra.weight" in r.getMessage() and r.name.startswith("concept")]
