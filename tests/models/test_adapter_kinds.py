"""Adapters with kohya's and LyCORIS' names: each kind's formula and gradients in float64, and the kinds not read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoHaConfig, LoKrConfig, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from concept_trak import UserError
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.gradients.pull_back import pull_back
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise
from concept_trak.models import load_model
from tests.models.families import FAMILIES, seeded
from tests.tolerances import EXACT64

RANK, ALPHA = 2, 6.0  # their ratio is a power of two times an integer, so that no kind rounds it
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
CONVOLUTION = "mid_block.resnets.0.conv1"
PROBE = Probe("forward_noise", "reconstruction_reward", (400,))
WORDS = ("a red circle", "a blue square")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    paths = {"sd": tmp_path_factory.mktemp("sd"), "sdxl": tmp_path_factory.mktemp("sdxl")}
    seeded(FAMILIES["stable_diffusion_eps"].build).save_pretrained(paths["sd"])
    seeded(FAMILIES["sdxl"].build).save_pretrained(paths["sdxl"])
    return paths


def drawn(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(base: Path, layer: str) -> Tensor:
    (file,) = (base / "unet").glob("*.safetensors")
    return load_file(file)[f"{layer}.weight"].double()


def lora(w: Tensor) -> dict[str, Tensor]:
    """Kohya's LoRA; of a convolution LyCORIS' LoCon."""
    return {"lora_down.weight": drawn(RANK, *w.shape[1:], seed=1),
            "lora_up.weight": drawn(len(w), RANK, *[1] * (w.dim() - 2), seed=2)}  # fmt: skip


def lora_delta(t: dict[str, Tensor], shape: torch.Size) -> Tensor:
    return (t["lora_up.weight"].flatten(1) @ t["lora_down.weight"].flatten(1)).reshape(shape)


def dora(w: Tensor) -> dict[str, Tensor]:
    return {**lora(w), "dora_scale": drawn(len(w), *[1] * (w.dim() - 1), seed=3).abs() + 0.5}


def loha(w: Tensor) -> dict[str, Tensor]:
    rest = w[0].numel()
    return {"hada_w1_a": drawn(len(w), RANK, seed=1), "hada_w1_b": drawn(RANK, rest, seed=2),
            "hada_w2_a": drawn(len(w), RANK, seed=3), "hada_w2_b": drawn(RANK, rest, seed=4)}  # fmt: skip


def loha_delta(t: dict[str, Tensor], shape: torch.Size) -> Tensor:
    return ((t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])).reshape(shape)


def lokr(w: Tensor) -> dict[str, Tensor]:
    """A small whole matrix, and a large one in two factors."""
    return {"lokr_w1": drawn(2, 2, seed=1), "lokr_w2_a": drawn(len(w) // 2, RANK, seed=2),
            "lokr_w2_b": drawn(RANK, w[0].numel() // 2, seed=3)}  # fmt: skip


def lokr_delta(t: dict[str, Tensor], shape: torch.Size) -> Tensor:
    large = (t["lokr_w2_a"] @ t["lokr_w2_b"]).reshape(shape[0] // 2, shape[1] // 2, *shape[2:])
    return torch.kron(t["lokr_w1"].reshape(2, 2, *[1] * (len(shape) - 2)), large)


def whole_lokr(w: Tensor) -> dict[str, Tensor]:
    """Two whole matrices, where alpha has no meaning: LyCORIS then scales by 1."""
    return {"lokr_w1": drawn(4, 2, seed=1), "lokr_w2": drawn(len(w) // 4, w.shape[1] // 2, *w.shape[2:], seed=2)}


def whole_lokr_delta(t: dict[str, Tensor], shape: torch.Size) -> Tensor:
    return torch.kron(t["lokr_w1"].reshape(4, 2, *[1] * (len(shape) - 2)), t["lokr_w2"]) * RANK / ALPHA


def tucker_lokr(w: Tensor) -> dict[str, Tensor]:
    """LyCORIS' `use_tucker`: the kernel's axes apart from those of the channels."""
    return {"lokr_w1": drawn(2, 2, seed=1), "lokr_w2_a": drawn(RANK, len(w) // 2, seed=2),
            "lokr_w2_b": drawn(RANK, w.shape[1] // 2, seed=3),
            "lokr_t2": drawn(RANK, RANK, *w.shape[2:], seed=4)}  # fmt: skip


def tucker_lokr_delta(t: dict[str, Tensor], shape: torch.Size) -> Tensor:
    large = torch.einsum("ijkl,jr,ip->prkl", t["lokr_t2"], t["lokr_w2_b"], t["lokr_w2_a"])
    return torch.kron(t["lokr_w1"][..., None, None], large.contiguous())


Make = Callable[[Tensor], dict[str, Tensor]]
Delta = Callable[[dict[str, Tensor], torch.Size], Tensor]
KINDS: dict[str, tuple[Make, Delta, tuple[str, ...]]] = {
    "lora": (lora, lora_delta, (ATTENTION, CONVOLUTION)),
    "dora": (dora, lora_delta, (ATTENTION, CONVOLUTION)),
    "loha": (loha, loha_delta, (ATTENTION, CONVOLUTION)),
    "lokr": (lokr, lokr_delta, (ATTENTION, CONVOLUTION)),
    "tucker_lokr": (tucker_lokr, tucker_lokr_delta, (CONVOLUTION,)),
    "whole_lokr": (whole_lokr, whole_lokr_delta, (ATTENTION, CONVOLUTION)),
}


def adapted(w: Tensor, t: dict[str, Tensor], delta: Delta) -> Tensor:
    """The weight as the kind's formula has it; DoRA's norms are constants, as it is trained."""
    whole = w + ALPHA / RANK * delta(t, w.shape)
    if "dora_scale" not in t:
        return whole
    norm = whole.detach().flatten(1).norm(dim=1).reshape(-1, *[1] * (w.dim() - 1))
    return t["dora_scale"] * whole / norm


def kohya_name(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_its_formula_and_its_gradients_are_those_of_autograd(bases, tmp_path, kind):
    """The reference is the base's network with the formula in place of its weights, differentiated by autograd."""
    make, delta, layers = KINDS[kind]
    weights = {layer: weight_of(bases["sd"], layer) for layer in layers}
    state = {
        f"{kohya_name(layer)}.{suffix}": value for layer, w in weights.items() for suffix, value in make(w).items()
    }
    alphas = {f"{kohya_name(layer)}.alpha": torch.tensor(ALPHA) for layer in layers}
    save_file({**state, **alphas}, tmp_path / "adapter.safetensors")
    ours = load_model(
        str(bases["sd"]), parameters="lora", precision="float64", lora=str(tmp_path / "adapter.safetensors")
    )
    base = load_model(str(bases["sd"]), precision="float64")

    factors = {key: value.double().requires_grad_() for key, value in state.items()}
    replaced = {f"{layer}.weight": adapted(w, {s: factors[f"{kohya_name(layer)}.{s}"] for s in make(w)}, delta)
                for layer, w in weights.items()}  # fmt: skip
    x_0 = torch.stack([normal(base.shape, 0, i, "x") for i in range(2)]).double()
    batch = Batch(("a", "b"), base.encode(WORDS), base.encode(["", ""]), x_0)
    (state_,) = forward_noise(base, batch, PROBE, 0)
    pulled = pull_back(ours, state_, [lambda s, seen: DIRECTIONS[PROBE.direction](ours, s, seen, PROBE)])[0]

    text = {"encoder_hidden_states": batch.cond["text"]}
    output = functional_call(base.network, replaced, (state_.x_t, torch.tensor([400, 400])), text).sample
    torch.testing.assert_close(pulled.prediction.eps, output, rtol=EXACT64, atol=EXACT64)
    v = pulled.direction.v.detach()
    expected = [torch.autograd.grad(output[i], list(factors.values()), v[i], retain_graph=True) for i in range(2)]
    gradients = pulled.dense()
    assert len(gradients) == len(factors)
    assert sum(g[0].numel() for g in gradients.values()) == sum(f.numel() for f in factors.values())
    for i in range(2):
        norms = sorted(g[i].norm().item() for g in gradients.values())
        assert norms == pytest.approx(sorted(g.norm().item() for g in expected[i]), rel=EXACT64)


def test_layers_of_sdxl_are_read_by_their_names_in_the_original_code(bases, tmp_path):
    """input_blocks 4 of a UNet with one layer a block is down_blocks 1's only layer, and its part 1 the attention."""
    names = {"lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_q": "down_blocks.1.attentions.0."
             "transformer_blocks.0.attn2.to_q",
             "lora_unet_input_blocks_3_0_in_layers_2": "down_blocks.1.resnets.0.conv1",
             "lora_unet_middle_block_1_proj_in": "mid_block.attentions.0.proj_in"}  # fmt: skip
    state = {f"{original}.{suffix}": value for original, layer in names.items()
             for suffix, value in loha(weight_of(bases["sdxl"], layer)).items()}  # fmt: skip
    save_file(state, tmp_path / "sgm.safetensors")
    ours = load_model(str(bases["sdxl"]), parameters="lora", lora=str(tmp_path / "sgm.safetensors"))
    assert {name.partition(".hada")[0] for name in ours.parameters} == set(names.values())


TEXT_LAYERS = (
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1",
)


@pytest.mark.parametrize("name", TEXT_LAYERS)
def test_a_loha_of_a_text_encoder_changes_its_encodings(bases, tmp_path, name):
    base = load_model(str(bases["sdxl"]))
    encoder = base.text_encoders["text_encoder_2" if "te2" in name else "text_encoder"].model
    layer = name.partition("text_model_")[2].replace("_layers_", ".layers.").replace("_self_attn_", ".self_attn.")
    module = dict(encoder.named_modules())
    w = next(m.weight for path, m in module.items() if path.replace(".", "_").endswith(layer.replace(".", "_")))
    save_file({f"{name}.{suffix}": value for suffix, value in loha(w).items()}, tmp_path / "text.safetensors")
    ours = load_model(str(bases["sdxl"]), lora=str(tmp_path / "text.safetensors"))
    assert not torch.allclose(ours.encode(["red"])["text"], base.encode(["red"])["text"])
    assert not any(p.requires_grad for e in ours.text_encoders.values() for p in e.model.parameters())


def swapped(t: dict[str, Tensor], **values: Tensor) -> dict[str, Tensor]:
    return t | {key.replace("__", "."): value for key, value in values.items()}


W = torch.zeros(16, 16)
REFUSED = {
    "tucker": (lora(W) | {"lora_mid.weight": torch.ones(2, 2, 3, 3)}, "LoCon with a Tucker core"),
    "tucker_loha": (loha(W) | {"hada_t1": torch.ones(2, 2, 3, 3)}, "LoHa with a Tucker core"),
    "full": ({"diff": torch.ones(16, 16)}, r"LyCORIS full \(diff\)"),
    "norm": ({"w_norm": torch.ones(16)}, "LyCORIS norm"),
    "ia3": ({"weight": torch.ones(16), "on_input": torch.ones(1)}, "IA3"),
    "glora": ({"a1.weight": torch.ones(2, 2)}, "GLoRA"),
    "oft": ({"oft_blocks": torch.ones(2, 2, 2)}, "OFT"),
    "scalar": (loha(W) | {"scalar": torch.ones(1)}, "learned scalar"),
    "dora_of_inputs": (swapped(dora(W), dora_scale=torch.ones(1, 16)), "magnitude for each input"),
    "dora_of_loha": (loha(W) | {"dora_scale": torch.ones(16, 1)}, "has dora_scale, which is not read"),
    "zero": (swapped(lora(W), lora_up__weight=torch.zeros(16, 2)), "changes no weight"),
    "zero_loha": (swapped(loha(W), hada_w2_b=torch.zeros(2, 16)), "changes no weight"),
    "nan": (swapped(loha(W), hada_w1_a=torch.full((16, 2), torch.nan)), "not finite"),
    "wide": (swapped(loha(W), hada_w1_b=torch.ones(2, 7), hada_w2_b=torch.ones(2, 7)), "does not fit"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_is_not_read_is_refused_by_its_name(bases, tmp_path, kind):
    state, expected = REFUSED[kind]
    w = weight_of(bases["sd"], ATTENTION)
    assert w.shape == W.shape, "the cases are made for this layer"
    save_file({f"{kohya_name(ATTENTION)}.{suffix}": v for suffix, v in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=expected):
        load_model(str(bases["sd"]), lora=str(tmp_path / "a.safetensors"))


def test_layers_that_the_model_does_not_have_are_named(bases, tmp_path):
    for prefix, expected in (("lora_unet_elsewhere", "it has no layer elsewhere"),
                             ("lora_te2_x", "belongs to text_encoder_2, which this model does not have")):  # fmt: skip
        save_file({f"{prefix}.{suffix}": v for suffix, v in loha(W).items()}, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=expected):
            load_model(str(bases["sd"]), lora=str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(("peft_config", "options"), [(LoHaConfig, {}), (LoKrConfig, {"decompose_both": True})])
def test_pefts_own_folders_of_other_kinds_are_its_own_network(bases, tmp_path, peft_config, options):
    pipe = StableDiffusionPipeline.from_pretrained(bases["sd"], low_cpu_mem_usage=False).to(torch.float64)
    config = peft_config(r=RANK, alpha=6, target_modules=["to_q", "conv1"], init_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = get_peft_model(pipe.unet, config)
    theirs.save_pretrained(tmp_path)
    ours = load_model(str(bases["sd"]), parameters="lora", precision="float64", lora=str(tmp_path))
    x_t, cond = normal(ours.shape, 0, 0, "x")[None].double(), ours.encode(["red"])
    with torch.no_grad():
        expected = theirs(x_t, 400, encoder_hidden_states=cond["text"]).sample
        assert (ours(x_t, 400, cond).eps - expected).norm() < EXACT64 * expected.norm()
    assert len(ours.parameters) == sum(p.requires_grad for p in theirs.parameters()) > 0


def test_another_type_of_peft_is_refused_by_its_name(bases, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(bases["sd"], low_cpu_mem_usage=False)
    get_peft_model(pipe.unet, OFTConfig(r=2, oft_block_size=0, target_modules=["to_q"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="OFT"):
        load_model(str(bases["sd"]), lora=str(tmp_path))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    state = {"base_model.model.x.lora_A.weight": torch.ones(2, 2), "base_model.model.x.lora_B.weight": torch.ones(2, 2)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    for changed, expected in (
        ({"peft_type": "VERA"}, "its peft_type is VERA, which is not read; expected LORA, LOHA"),
        ({"peft_type": "LORA", "modules_to_save": ["conv_in"]}, "has modules_to_save"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | changed))
        with pytest.raises(UserError, match=expected):
            load_model(str(bases["sd"]), lora=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"adapter_config\.json is not a JSON mapping"):
        load_model(str(bases["sd"]), lora=str(tmp_path))
