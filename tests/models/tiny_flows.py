"""The tiny rectified flows of `families.py` after sd3: random weights, real classes, images of 16 x 16 pixels."""

import warnings
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from concept_trak.models import small
from tests.models.tiny import clip, flow_scheduler, flow_vae, gemma, letters, perturb

WIDTHS: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32,
                          "in_channels": 16, "axes_dims_rope": (2, 2, 4)}  # fmt: skip


def shifting() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def flux(guidance: bool) -> FluxPipeline:
    """dev, which is told how strong a guidance it imitates; schnell is not."""
    network = FluxTransformer2DModel(
        num_layers=2, num_single_layers=1, pooled_projection_dim=12, guidance_embeds=guidance, **WIDTHS
    )
    words = small.tokenizer()
    t5, tokens = letters(32, 16)
    texts: dict[str, Any] = {"text_encoder": clip(CLIPTextModel, words, 12, 12), "tokenizer": words}
    texts |= {"text_encoder_2": t5, "tokenizer_2": tokens}
    return FluxPipeline(transformer=network, scheduler=shifting(), vae=flow_vae(), **texts)


def controlnet_flux(guidance: bool) -> FluxControlNetPipeline:
    """On a base that is distilled if the ControlNet is not: each has the strength of guidance or has not."""
    base = flux(guidance=not guidance)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        controlnet = perturb(
            FluxControlNetModel(
                num_layers=1, num_single_layers=1, pooled_projection_dim=12, guidance_embeds=guidance, **WIDTHS
            )
        )
    names = ("transformer", "scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return FluxControlNetPipeline(**{name: getattr(base, name) for name in names}, controlnet=controlnet)


def chroma() -> ChromaPipeline:
    sizes = {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 2}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        network = ChromaTransformer2DModel(num_layers=2, num_single_layers=1, **sizes, **WIDTHS)
    t5, tokens = letters(32, 16)
    parts: dict[str, Any] = {"text_encoder": t5, "tokenizer": tokens, "vae": flow_vae()}
    return ChromaPipeline(transformer=network, scheduler=shifting(), **parts)


def byte_tokens(limit: int) -> Qwen2Tokenizer:
    """A token per byte, and the marks of a conversation."""
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    pieces = (*marks, *sorted(ByteLevel.alphabet()))
    words = {piece: i for i, piece in enumerate(pieces)}
    return Qwen2Tokenizer(
        vocab=words, merges=[], model_max_length=limit, extra_special_tokens=list(marks[1:]), padding_side="right"
    )


CONVERSATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def flux2_klein() -> Flux2KleinPipeline:
    """With as many layers of the language model as are read, and other statistics of its VAE than 0 and 1."""
    words = byte_tokens(64)
    words.chat_template = CONVERSATION
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 28, "num_attention_heads": 2}
    more = {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 0}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), **sizes, **more))
    return Flux2KleinPipeline(**flux2(guidance=False), text_encoder=model, tokenizer=words)


def flux2(guidance: bool) -> dict[str, Any]:
    """What dev and Klein have in common, with other statistics of the VAE than 0 and 1."""
    sizes = WIDTHS | {"joint_attention_dim": 48, "axes_dims_rope": (2, 2, 2, 2)}
    network = Flux2Transformer2DModel(
        num_layers=2, num_single_layers=1, timestep_guidance_channels=8, guidance_embeds=guidance, **sizes
    )
    codec = AutoencoderKLFlux2(block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                               up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2,
                               sample_size=16)  # fmt: skip
    codec.bn.running_mean.uniform_(-0.5, 0.5)
    codec.bn.running_var.uniform_(0.5, 2.0)
    return {"transformer": network, "scheduler": shifting(), "vae": codec}


TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{{ m['content'][0]['text'] }}"
    "[/SYSTEM_PROMPT]{% else %}[INST]{{ m['content'][0]['text'] }}[/INST]{% endif %}{% endfor %}"
)


class PixtralProcessor(ProcessorMixin):
    """The class of transformers by its name: that one needs torchvision, for pictures. Its text is the tokenizer's."""

    __module__ = "transformers.models.pixtral.processing_pixtral"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.apply_chat_template, self.save_pretrained = tokenizer.apply_chat_template, tokenizer.save_pretrained


def pixtral_tokens(limit: int) -> PixtralProcessor:
    """A token per byte, with the start of text before each, and padding on the left."""
    pieces = ("<unk>", "<s>", "</s>", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", *sorted(ByteLevel.alphabet()))
    words = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=limit, padding_side="left", extra_special_tokens=["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    )  # fmt: skip
    tokenizer.chat_template = TURNS
    return PixtralProcessor(tokenizer)


def flux2_dev() -> Flux2Pipeline:
    """With one more layer of the language model than are read."""
    words = pixtral_tokens(256)
    text = {"model_type": "mistral", "vocab_size": len(words.tokenizer), "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 31, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "max_position_embeddings": 512}  # fmt: skip
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "head_dim": 8}  # fmt: skip
    model = Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=4)
    )
    return Flux2Pipeline(**flux2(guidance=True), text_encoder=model, tokenizer=words)


def qwen_image() -> QwenImagePipeline:
    words = byte_tokens(256)
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    network = QwenImageTransformer2DModel(patch_size=2, out_channels=4, num_layers=2, **WIDTHS)
    codec = AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
                                   latents_mean=[0.5, 0.0, -0.25, 0.0], latents_std=[2.0, 1.0, 0.5, 1.0])  # fmt: skip
    return QwenImagePipeline(transformer=network, scheduler=shifting(), vae=codec, text_encoder=model, tokenizer=words)


def lumina2() -> Lumina2Pipeline:
    """The layer before Gemma's last, so Gemma has one more."""
    model, words = gemma(24, 512)
    network = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 16, 16),
        cap_feat_dim=24,
    )
    return Lumina2Pipeline(transformer=network, scheduler=flow_scheduler(), vae=flow_vae(), text_encoder=model,
                           tokenizer=words)  # fmt: skip


TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def z_image() -> ZImagePipeline:
    """Texts of 32 tokens and of 64, in which the network counts."""
    words = byte_tokens(512)
    words.chat_template = TURN
    text = Qwen3Config(vocab_size=len(words), hidden_size=24, intermediate_size=24, num_hidden_layers=2, head_dim=8,
                       num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512)  # fmt: skip
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 4, 4],
        axes_lens=[600, 16, 16],
    )
    return ZImagePipeline(transformer=network, scheduler=flow_scheduler(), vae=flow_vae(),
                          text_encoder=Qwen3Model(text), tokenizer=words)  # fmt: skip


def wan() -> WanPipeline:
    """Clips of 32 x 32 pixels, four frames of which are one of latents."""
    pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", *(f"▁{word}" for word in small.WORDS))]
    config = UMT5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    network = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
                                    text_dim=32, freq_dim=8, ffn_dim=16, num_layers=2, rope_max_seq_len=32)  # fmt: skip
    codec = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, scale_factor_spatial=4,
                             temperal_downsample=[True, True], latents_mean=[0.5, 0.0, -0.25, 0.0],
                             latents_std=[2.0, 1.0, 0.5, 1.0])  # fmt: skip
    words = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    texts: dict[str, Any] = {"text_encoder": UMT5EncoderModel(config), "tokenizer": words}
    return WanPipeline(transformer=network, scheduler=flow_scheduler(), vae=codec, **texts)
