"""A LoRA, a fine-tune and embeddings beside their base: as diffusers and peft write them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from concept_trak import UserError
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.gradients.pull_back import pull_back
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise
from concept_trak.models import load_model
from tests.models.families import FAMILIES, seeded
from tests.tolerances import EXACT64

RANK, ALPHA = 2, 6
LAYERS = ["to_q", "to_out.0"]
WORDS = ("a red circle", "a blue square")


def trained(network: nn.Module, layers: list[str] = LAYERS) -> nn.Module:
    """A LoRA on a network, whose matrices are none of them zero."""
    torch.manual_seed(1)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers)
    # What wraps a model asks a text encoder something that warns of its next release.
    texts = hasattr(network, "get_input_embeddings")
    adapted = inject_adapter_in_model(config, network) if texts else get_peft_model(network, config)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.3)
    return adapted


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """sd/, dit/: bases; diffusers/ and peft/: one LoRA of sd/ in either format; text/: one of its text encoder too."""
    root = tmp_path_factory.mktemp("beside")
    pipe = seeded(FAMILIES["stable_diffusion_eps"].build)
    pipe.save_pretrained(root / "sd")
    dit = seeded(FAMILIES["dit"].build)
    dit.save_pretrained(root / "dit")
    with torch.random.fork_rng():
        unet = trained(pipe.unet)
        unet.save_pretrained(root / "peft")
        state = get_peft_model_state_dict(unet)
        own = {name.removeprefix("base_model.model."): value for name, value in state.items()}
        metadata = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()}
        StableDiffusionPipeline.save_lora_weights(root / "diffusers", unet_lora_layers=own, **metadata)
        text = trained(pipe.text_encoder, ["q_proj"])
        spoken = {n.removeprefix("base_model.model."): v for n, v in get_peft_model_state_dict(text).items()}
        metadata["text_encoder_lora_adapter_metadata"] = text.peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(
            root / "text", unet_lora_layers=own, text_encoder_lora_layers=spoken, **metadata
        )
        trained(dit.transformer).save_pretrained(root / "peft_dit")
    return root


def matrices(lora: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) of every layer of a peft folder, by the layer's name, float64."""
    state = {n.removeprefix("base_model.model."): v.double() for n, v in load_file(lora).items()}
    layers = {name.partition(".lora_")[0] for name in state}
    return {layer: (state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]) for layer in layers}


def merged(base: Path, part: str, lora: Path, out: Path) -> Path:
    """The base with W + (alpha / r) B A written into its weights."""
    model = shutil.copytree(base, out)
    (file,) = (model / part).glob("*.safetensors")
    weights = {name: value.double() for name, value in load_file(file).items()}
    for layer, (a, b) in matrices(lora).items():
        weights[f"{layer}.weight"] += ALPHA / RANK * b @ a
    save_file(weights, file, {"format": "pt"})
    return model


def states(denoiser, b: int = 2) -> torch.Tensor:
    return torch.stack([normal(denoiser.shape, 0, i, "x") for i in range(b)]).double()


CASES = [
    ("sd", "unet", "diffusers", "peft"),
    ("sd", "unet", "peft", "peft"),
    ("dit", "transformer", "peft_dit", "peft_dit"),
]


@pytest.mark.parametrize(("base", "part", "lora", "written"), CASES)
def test_a_lora_is_its_product_added_and_its_gradients_are_the_chain_rules(made, tmp_path, base, part, lora, written):
    """dL/dB = s G A^T and dL/dA = s B^T G, with G the gradient in the sum, from the model whose weights hold it."""
    file = made / written / "adapter_model.safetensors"
    whole = load_model(str(merged(made / base, part, file, tmp_path / "model")), precision="float64")
    ours = load_model(str(made / base), parameters="lora", precision="float64", lora=str(made / lora))
    texts = ("0", "1") if base == "dit" else WORDS
    batch = Batch(("a", "b"), ours.encode(texts), ours.encode(["", ""]), states(ours))
    probe = Probe("forward_noise", "reconstruction_reward", (400,))

    def pulled(d):
        (state,) = forward_noise(d, batch, probe, 0)
        found = pull_back(d, state, [lambda s, seen: DIRECTIONS["reconstruction_reward"](d, s, seen, probe)])[0]
        return found.prediction.eps, found.dense()

    (eps, g), (same, fast) = pulled(whole), pulled(ours)
    torch.testing.assert_close(same, eps, rtol=EXACT64, atol=EXACT64)
    written_out, scale = matrices(file), ALPHA / RANK
    assert len(fast) == 2 * len(written_out) > 0
    assert sum(p.numel() for p in ours.parameters.values()) == sum(
        a.numel() + b.numel() for a, b in written_out.values()
    )
    for layer, (a, b) in written_out.items():
        slope = g[f"{layer}.weight"]
        for name, expected in (("lora_B", scale * slope @ a.T), ("lora_A", scale * b.T @ slope)):
            error = (fast[f"{layer}.{name}.lora.weight"] - expected).norm() / expected.norm()
            assert error < EXACT64, f"{layer}.{name} differs by {error:.1e} from the chain rule"


def test_a_lora_of_the_text_encoder_moves_its_encodings(made, tmp_path):
    base, both = load_model(str(made / "sd")), load_model(str(made / "sd"), lora=str(made / "text"))
    unet_only = load_model(str(made / "sd"), lora=str(made / "diffusers"))
    assert torch.equal(unet_only.encode(WORDS)["text"], base.encode(WORDS)["text"])
    assert not torch.allclose(both.encode(WORDS)["text"], base.encode(WORDS)["text"])
    pipe = StableDiffusionPipeline.from_pretrained(made / "sd", low_cpu_mem_usage=False)
    pipe.load_lora_weights(made / "text")
    theirs = pipe.encode_prompt(list(WORDS), "cpu", 1, False)[0]
    torch.testing.assert_close(both.encode(WORDS)["text"], theirs, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in both.text_encoders["text_encoder"].model.parameters())


def test_what_stands_beside_a_model_makes_it_another_wherever_it_lies(made, tmp_path):
    base = load_model(str(made / "sd")).identity()
    ours = load_model(str(made / "sd"), lora=str(made / "peft")).identity()
    assert {name for name in ours if ours[name] != base.get(name)} == {
        "lora/adapter_model.safetensors", "lora/adapter_config.json"}  # fmt: skip
    copy = shutil.copytree(made / "peft", tmp_path / "lora")
    assert load_model(str(made / "sd"), lora=str(copy)).identity() == ours
    config = json.loads((copy / "adapter_config.json").read_text()) | {"lora_alpha": 2 * ALPHA}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert load_model(str(made / "sd"), lora=str(copy)).identity() != ours, "twice the strength is another model"


def test_a_fine_tune_is_the_model_that_holds_its_weights(made, tmp_path):
    tuned = merged(made / "sd", "unet", made / "peft/adapter_model.safetensors", tmp_path / "tuned")
    whole, base = load_model(str(tuned)), load_model(str(made / "sd"))
    (file,) = (tuned / "unet").glob("*.safetensors")
    for weights in (tuned / "unet", file):
        ours = load_model(str(made / "sd"), weights=str(weights))
        for name, p in whole.parameters.items():
            assert torch.equal(p, ours.parameters[name])
        assert ours.identity() == whole.identity() != base.identity()


def embedding(made: Path, *words: str) -> torch.Tensor:
    """The rows of words that the encoder knows, [n, width]."""
    reader = load_model(str(made / "sd")).text_encoders["text_encoder"]
    ids = [reader.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in words]
    return reader.model.get_input_embeddings().weight[ids].detach().clone()


@pytest.mark.parametrize("words", [("red",), ("red", "circle")])
def test_a_token_that_was_taught_a_words_vectors_is_read_as_those_words(made, tmp_path, words):
    save_file({"<new>": embedding(made, *words)}, tmp_path / "new.safetensors")
    base = load_model(str(made / "sd"))
    ours = load_model(str(made / "sd"), embeddings=[str(tmp_path / "new.safetensors")])
    said, meant = ours.encode(["a <new>", "blue"])["text"], base.encode([f"a {' '.join(words)}", "blue"])["text"]
    torch.testing.assert_close(said, meant)
    assert ours.text_encoders["text_encoder"].length("a <new>") == 3 + len(words), "its tokens count towards the limit"
    assert set(ours.identity()) - set(base.identity()) == {"embeddings/new.safetensors"}
    assert not any(p.requires_grad for p in ours.text_encoders["text_encoder"].model.parameters())


def test_what_does_not_belong_is_refused(made, tmp_path):
    def refused(what: str, base: str = "sd", **ways) -> None:
        with pytest.raises(UserError, match=what):
            load_model(str(made / base), **ways)

    (tmp_path / "lora.bin").write_bytes(b"pickle")
    refused(
        r"model\.lora: .*lora\.bin cannot be read \(not a \.safetensors file: pickled", lora=str(tmp_path / "lora.bin")
    )
    refused(r"model\.lora: .*nowhere.safetensors cannot be read", lora=str(tmp_path / "nowhere.safetensors"))
    refused(r"model\.lora='.*peft_dit' .*expected", lora=str(made / "peft_dit"))
    refused(r"does not fit DiTPipeline \(diffusers has no LoRA format for it; give a folder that peft", "dit",
            lora=str(made / "diffusers"))  # fmt: skip
    state = load_file(made / "diffusers/pytorch_lora_weights.safetensors")
    save_file({f"{n.replace('mid_block', 'elsewhere')}": v for n, v in state.items()}, tmp_path / "other.safetensors")
    refused(r"has \d+ matrices, and \d+ places were found for them", lora=str(tmp_path / "other.safetensors"))
    refused(r"model\.weights='.*' does not fit the denoising network", weights=str(made / "dit/transformer"))
    refused(r"model\.weights='/nowhere' does not exist", weights="/nowhere")
    save_file({"<new>": torch.zeros(1, 5)}, tmp_path / "narrow.safetensors")
    refused(
        r"model\.embeddings='.*narrow.* does not fit text_encoder", embeddings=[str(tmp_path / "narrow.safetensors")]
    )
    save_file({"red": torch.zeros(1, 64)}, tmp_path / "known.safetensors")
    refused(r"differ in text_encoder", "dit", embeddings=[str(tmp_path / "narrow.safetensors")])
