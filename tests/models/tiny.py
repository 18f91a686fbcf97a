"""The tiny pipelines of `families.py`: random weights, real classes, 8 x 8 latents of 16 x 16 pixels."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    ControlNetModel,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from concept_trak.models import small


def stable_diffusion(prediction_type: small.PredictionType) -> Any:
    pipe = small.latent_pipeline(0)
    pipe.register_modules(scheduler=small.scheduler(prediction_type))
    return pipe


def controlnet() -> StableDiffusionControlNetPipeline:
    """As `train_controlnet.py` begins it, from the UNet; then with other weights, so that its zero convolutions act."""
    base = stable_diffusion("epsilon")
    unet = UNet2DConditionModel.from_config({**base.unet.config, "addition_embed_type": None})
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return StableDiffusionControlNetPipeline(unet=unet, controlnet=trained_controlnet(unet), **parts,
                                             safety_checker=None, feature_extractor=None,
                                             requires_safety_checker=False)  # fmt: skip


def trained_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    return perturb(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)))


def ip_adapter() -> Any:
    return with_ip_adapter(stable_diffusion("epsilon"))


def ip_adapter_sdxl() -> StableDiffusionXLPipeline:
    return with_ip_adapter(sdxl(zeros=True))


def with_ip_adapter(pipe: Any) -> Any:
    """By diffusers' own loader, from tensors with the names of the published files."""
    pipe.register_modules(image_encoder=clip_vision())
    pipe.load_ip_adapter(adapter_file(pipe.unet), subfolder="", weight_name="", low_cpu_mem_usage=False)
    return pipe


def clip_vision() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, projection_dim=8, num_hidden_layers=1,
                              num_attention_heads=2, image_size=12, patch_size=4)  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def adapter_file(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """A file's two groups: each attention to the text has a number, with those to the image between them."""
    width, texts = unet.config["cross_attention_dim"], [name for name in unet.attn_processors if "attn2" in name]
    keys = [unet.get_submodule(name.removesuffix(".processor")).to_k.weight for name in texts]
    return {
        "image_proj": {
            "proj.weight": torch.randn(4 * width, 8),
            "proj.bias": torch.randn(4 * width),
            "norm.weight": 1 + 0.1 * torch.randn(width),
            "norm.bias": 0.1 * torch.randn(width),
        },
        "ip_adapter": {
            f"{2 * i + 1}.to_{kind}_ip.weight": 0.3 * torch.randn_like(key) for i, key in enumerate(keys)
            for kind in "kv"
        },
    }  # fmt: skip


def pixart() -> Any:
    return small.patch_pipeline(0, resolution=16, size=small.TransformerSize(2, 2, 16), predicts="epsilon")


def letters(width: int, limit: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """T5 with a token per word."""
    pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", *(f"▁{word}" for word in small.WORDS))]
    config = T5Config(vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=limit)


def pixart_t5(sizes: bool) -> PixArtAlphaPipeline:
    """As published: T5 behind a mask, a learned variance, latents; told sizes where it learned at 1024 pixels.

    diffusers' call tells sizes where `sample_size` is 128, which large patches keep small.
    """
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=128 if sizes else 8,
        patch_size=32 if sizes else 2,
        caption_channels=32,
        use_additional_conditions=sizes,
    )
    t5, words = letters(32, 512)
    parts: dict[str, Any] = {"vae": vae(4, mid_block_add_attention=not sizes), "text_encoder": t5, "tokenizer": words}
    parts |= {"transformer": network}
    return PixArtAlphaPipeline(**parts, scheduler=small.scheduler("epsilon"))


def dit() -> DiTPipeline:
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
    )
    return DiTPipeline(transformer=network, vae=vae(4), scheduler=small.scheduler("epsilon"))


def ddpm(classes: int | None) -> DDPMPipeline:
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=classes,
    )
    return DDPMPipeline(unet=network, scheduler=DDPMScheduler())


def clip(kind: Any, words: CLIPTokenizer, width: int, projection: int) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=projection,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=words.model_max_length,
            bos_token_id=small.START,
            eos_token_id=small.END,
            pad_token_id=small.END,
        )
    )


def vae(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=0.5,
        **more,
    )


def controlnet_sdxl() -> StableDiffusionXLControlNetPipeline:
    base = sdxl(zeros=True)
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    parts = {name: getattr(base, name) for name in names}
    return StableDiffusionXLControlNetPipeline(
        **parts, controlnet=trained_controlnet(base.unet), force_zeros_for_empty_prompt=True, add_watermarker=False
    )


def perturb(controlnet: Any) -> Any:
    """With other weights than those at the beginning of training, so that its zero layers act."""
    with torch.no_grad():
        for p in controlnet.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return controlnet


def controlnet_sd3(**kind: Any) -> StableDiffusion3ControlNetPipeline:
    base = sd3(t5=False)
    sizes: dict[str, Any] = {"in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2}
    more = {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 12 + 10}
    more |= {"pos_embed_max_size": 8, "num_layers": 2, **kind}
    controlnet = perturb(SD3ControlNetModel(sample_size=8, patch_size=2, out_channels=4, **sizes, **more))
    names = ("transformer", "scheduler", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer",
             "tokenizer_2", "tokenizer_3")  # fmt: skip
    return StableDiffusion3ControlNetPipeline(**{name: getattr(base, name) for name in names}, controlnet=controlnet)


def flow_vae() -> AutoencoderKL:
    """Of SD3 and Flux: latents that are shifted, and no convolutions beside encoder and decoder."""
    return vae(4, shift_factor=0.25, use_quant_conv=False, use_post_quant_conv=False)


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def sdxl(zeros: bool) -> StableDiffusionXLPipeline:
    words = small.tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 2),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=16 + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    texts: dict[str, Any] = {"text_encoder": clip(CLIPTextModel, words, 16, 12)}
    texts |= {"text_encoder_2": clip(CLIPTextModelWithProjection, words, 24, 20)}
    texts |= {"tokenizer": words, "tokenizer_2": words}
    parts = {"vae": vae(4), "unet": unet, "scheduler": small.scheduler("epsilon"), **texts}
    return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)


def sd3(t5: bool, **of_3_5: Any) -> StableDiffusion3Pipeline:
    """As published: the last block of joint attention has no output for the text. 3.5 has more layers of its own."""
    words = small.tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=12 + 10,
        pos_embed_max_size=8,
        **of_3_5,
    )
    encoder, tokens = letters(32, 256)
    kind, texts = CLIPTextModelWithProjection, {}
    texts |= {"text_encoder": clip(kind, words, 12, 12), "text_encoder_2": clip(kind, words, 14, 10)}
    texts |= {"text_encoder_3": encoder if t5 else None}
    texts |= {"tokenizer": words, "tokenizer_2": words}
    texts |= {"tokenizer_3": tokens if t5 else None}
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=flow_scheduler(), vae=flow_vae(), **texts)


def gemma(width: int, limit: int) -> tuple[Gemma2Model, GemmaTokenizer]:
    """Gemma 2 with a token per letter, in texts of up to `limit` tokens."""
    pieces = ("<pad>", "<eos>", "<bos>", "<unk>", "\u2581", "\n", *map(chr, range(33, 127)))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    words = GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, model_max_length=limit)
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=limit,
    )
    return Gemma2Model(config), words


def sana() -> SanaPipeline:
    """Linear attention with RMS norms of queries and keys, as SANA 1.5."""
    text, words = gemma(24, 8192)
    network = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
    )
    return SanaPipeline(words, text, vae_without_posterior(), network, flow_scheduler())  # type: ignore[arg-type]


def vae_without_posterior() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
