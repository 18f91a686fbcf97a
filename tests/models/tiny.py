"""The tiny pipelines of `families.py`: random weights, real classes, 8 x 8 latents of 16 x 16 pixels."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from concept_trak.models import small


def stable_diffusion(prediction_type: small.Prediction) -> Any:
    pipe = small.latents(0)
    pipe.register_modules(scheduler=small.scheduler(prediction_type))
    return pipe


def pixart() -> Any:
    return small.patches(0, resolution=16, size=small.Size(2, 2, 16), predicts="epsilon")


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


def sd3(t5: bool) -> StableDiffusion3Pipeline:
    words = small.tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=12 + 10,
        pos_embed_max_size=8,
        qk_norm="rms_norm" if t5 else None,  # of 3.5
        dual_attention_layers=(0,) if t5 else (),
    )
    pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", *(f"▁{word}" for word in small.WORDS))]
    letters = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    kind, texts = CLIPTextModelWithProjection, {}
    texts |= {"text_encoder": clip(kind, words, 12, 12), "text_encoder_2": clip(kind, words, 14, 10)}
    texts |= {"text_encoder_3": T5EncoderModel(letters) if t5 else None}
    texts |= {"tokenizer": words, "tokenizer_2": words}
    texts |= {"tokenizer_3": T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=256) if t5 else None}
    noise = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=noise, vae=vae(4, shift_factor=0.25), **texts)
