"""Adapters with the names of kohya's scripts and of LyCORIS, which diffusers does not read: DoRA, LoHa and LoKr.

A layer is named by its path in the network with underscores (`lora_unet_mid_block_attentions_0_proj_in`), in Stable
Diffusion XL also by its path in the original code (`lora_unet_input_blocks_4_1_proj_in`). Each layer has an `alpha`;
its rank is read from its matrices.
"""

import re
from collections.abc import Mapping
from typing import Any

from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from concept_trak import UserError

Layer = dict[str, Tensor]
PREFIXES = {"lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3",
            "lora_te_": "text_encoder", "lora_unet_": "", "lycoris_": ""}  # fmt: skip
"""The part that a layer's name begins with; empty is the denoising network."""
LORA = {"lora_down.weight", "lora_up.weight"}
LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
LOKR = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
KINDS = {"lora": LORA, "loha": LOHA, "lokr": LOKR}
UNREAD = {
    "lora_mid.weight": "LoCon with a Tucker core (lora_mid)",
    "hada_t1": "LoHa with a Tucker core (hada_t1), of which peft's gradients are wrong",
    "diff": "LyCORIS full (diff)",
    "diff_b": "LyCORIS full (diff_b)",
    "w_norm": "LyCORIS norm",
    "b_norm": "LyCORIS norm",
    "on_input": "IA3",
    "a1.weight": "GLoRA",
    "oft_blocks": "OFT",
    "oft_diag": "Diag-OFT",
    "scalar": "LyCORIS with a learned scalar",
    "bias_indices": "LyCORIS with a sparse bias",
    "set_weight": "LyCORIS set_weight",
}
"""Tensors of unsupported kinds, with the name of the kind."""
INNER_NAMES = (
    ("in_layers_2", "conv1"),
    ("out_layers_3", "conv2"),
    ("emb_layers_1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
    ("downsamplers_0_op", "downsamplers_0_conv"),
    (r"^input_blocks_0_0$", "conv_in"),
    ("input_blocks", "down_blocks"),
    ("middle_block", "mid_block"),
    ("output_blocks", "up_blocks"),
    (r"^out_2$", "conv_out"),
    (r"^time_embed_0$", "time_embedding_linear_1"),
    (r"^time_embed_2$", "time_embedding_linear_2"),
    (r"^label_emb_0_0$", "add_embedding_linear_1"),
    (r"^label_emb_0_2$", "add_embedding_linear_2"),
)
"""What diffusers calls a layer of the original code, once its blocks have diffusers' numbers."""


def is_lycoris(state: Mapping[str, Tensor]) -> bool:
    """Whether this file is read here: kohya's names with more than a plain LoRA."""
    own = any(key.startswith(tuple(PREFIXES)) for key in state)
    return own and any(suffix == "dora_scale" or suffix in LOHA | LOKR for suffix in map(_suffix, state))


def require_known_layers(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse a file of a kind that is not read.

    Raises:
        UserError: naming the kind.
    """
    if any(key.startswith(("image_proj.", "ip_adapter.")) for key in state):
        raise UserError(
            f"{name} is an IP-Adapter, whose condition is a reference picture; load it into the pipeline with "
            "`load_ip_adapter`, save that with `save_pretrained`, and set model.path to it"
        )
    kinds = sorted({kind for suffix, kind in UNREAD.items() if any(key.endswith(f".{suffix}") for key in state)})
    if any("boft" in key or ".oft_" in key for key in state):
        kinds = sorted({*kinds, "OFT"})
    if kinds:
        raise UserError(
            f"{name} is of a kind that is not read: {', '.join(kinds)}; expected a LoRA (also DoRA, rsLoRA, LoCon), a "
            "LoHa or a LoKr. Merge it into the base with the tool that trained it, and set model.weights to the merged "
            "network"
        )


def add_lycoris(modules: Mapping[str, nn.Module], part: str, state: Mapping[str, Tensor], name: str) -> None:
    """Add the layers of a file to a network and its text encoders.

    Args:
        modules: the denoising network and the text encoders, by their part of the directory.
        part: the network's part.
        state: the file's tensors, by kohya's names.
        name: the adapter's name.

    Raises:
        UserError: a layer is not in the model, or is of a kind that is not read.
    """
    state = _maybe_map_sgm_blocks_to_diffusers(dict(state), getattr(modules[part], "config", None))
    layers: dict[str, dict[str, Layer]] = {}
    for key, value in state.items():
        layer, _, suffix = key.partition(".")
        prefix = next((p for p in PREFIXES if layer.startswith(p)), None)
        if prefix is None:
            raise UserError(f"{key} does not begin with one of {', '.join(PREFIXES)}")
        target = PREFIXES[prefix] or part
        if target not in modules:
            raise UserError(f"{key} belongs to {target}, which this model does not have")
        path = _module_path(modules[target], layer.removeprefix(prefix))
        layers.setdefault(target, {}).setdefault(path, {})[suffix] = value
    for target, by_path in layers.items():
        _inject(modules[target], by_path, name)


def _suffix(key: str) -> str:
    return key.partition(".")[2]


def _module_path(module: nn.Module, layer: str) -> str:
    """The path of a layer in a module, of its name with underscores."""
    for original, ours in INNER_NAMES:
        layer = re.sub(original, ours, layer)
    paths = {path.replace(".", "_"): path for path, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for candidate in (layer, layer.removeprefix("text_model_"), f"text_model_{layer}"):
        if candidate in paths:
            return paths[candidate]
    raise UserError(f"it has no layer {layer}")


def _inject(module: nn.Module, layers: Mapping[str, Layer], name: str) -> None:
    kinds = {_kind(path, layer) for path, layer in layers.items()}
    if len(kinds) > 1:
        raise UserError(f"it mixes {', '.join(sorted(kinds))}, and one adapter has one kind of layer")
    kind = kinds.pop()
    options: dict[str, Any] = {"target_modules": "|".join(map(re.escape, layers))}
    if kind == "lora":
        ranks = {f"^{re.escape(path)}": _rank(layer) for path, layer in layers.items()}
        dora = any("dora_scale" in layer for layer in layers.values())
        config: Any = LoraConfig(r=1, use_dora=dora, rank_pattern=ranks, **options)
    elif kind == "loha":
        config = LoHaConfig(r=1, **options)
    else:
        config = LoKrConfig(r=1, **options)
    inject_adapter_in_model(config, module, adapter_name=name)
    for path, layer in layers.items():
        place: Any = module.get_submodule(path)
        place.scaling[name] = _scale(layer)
        _fill_lora(place, path, layer, name) if kind == "lora" else _fill_lycoris(place, layer, KINDS[kind], name)


def _kind(path: str, layer: Layer) -> str:
    """`lora`, `loha` or `lokr`, after a check that every tensor of the layer is used."""
    kind = next((kind for kind, suffixes in KINDS.items() if suffixes & layer.keys()), "")
    allowed = KINDS.get(kind, set()) | {"alpha"} | ({"dora_scale"} if kind == "lora" else set())
    if not kind or not layer.keys() <= allowed:
        raise UserError(f"{path} has {', '.join(sorted(layer.keys() - allowed))}, which is not read")
    return kind


def _rank(layer: Layer) -> int | None:
    """The rank of a layer's factors; None for a LoKr of two whole matrices."""
    for key in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if key in layer:
            return layer[key].shape[0]
    return None


def _scale(layer: Layer) -> float:
    rank = _rank(layer)
    return 1.0 if rank is None or "alpha" not in layer else layer["alpha"].item() / rank


def _fill_lora(place: Any, path: str, layer: Layer, name: str) -> None:
    for key, target in (("lora_down.weight", place.lora_A), ("lora_up.weight", place.lora_B)):
        _copy(target[name].weight, layer[key], f"{path}.{key}")
    if "dora_scale" not in layer:
        return
    magnitude = place.lora_magnitude_vector[name].weight
    if layer["dora_scale"].shape[0] != magnitude.numel():
        raise UserError(
            f"{path}.dora_scale has the shape {list(layer['dora_scale'].shape)}: a DoRA with a magnitude for each "
            "input is not read; expected one for each output (wd_on_output)"
        )
    _copy(magnitude, layer["dora_scale"].reshape(magnitude.shape), f"{path}.dora_scale")


def _fill_lycoris(place: Any, layer: Layer, suffixes: set[str], name: str) -> None:
    """Put the file's matrices in place of peft's. Their shapes determine how the weight is factored."""
    weight = place.get_base_layer().weight
    for suffix in suffixes:
        own = getattr(place, suffix)
        if name in own:
            del own[name]
        if suffix in layer:
            own[name] = nn.Parameter(layer[suffix].to(weight.device, weight.dtype))
    place.get_delta_weight(name)  # raises where the matrices do not make this weight


def _copy(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    if parameter.shape != value.shape:
        raise UserError(f"{key} has the shape {list(value.shape)}, and the model needs {list(parameter.shape)}")
    parameter.data.copy_(value)
