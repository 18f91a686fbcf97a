"""Textual-inversion embeddings: a token for texts, with the vectors that were learned for it (Gal et al. 2023).

| file                  | tensors                        | token                                                  |
|-----------------------|--------------------------------|--------------------------------------------------------|
| diffusers             | `<token>` [n, width]           | the tensor's name                                      |
| A1111, Civitai        | `emb_params` [n, width]        | the file's name                                        |
| Stable Diffusion XL   | `clip_l`, `clip_g` [n, width]  | the file's name, one set of vectors for each encoder   |
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import AddedToken

from concept_trak import UserError
from concept_trak.models.text_encoder import TextEncoder, is_word, tokenizer_of

ENCODER_KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
FILE_NAME_KEY = "emb_params"


def add_embedding(
    encoders: Mapping[str, TextEncoder], file: Path, state: Mapping[str, Tensor]
) -> Mapping[str, TextEncoder]:
    """The text encoders with one more token, or several where the embedding has several vectors.

    Args:
        encoders: by their part of the directory.
        file: the embedding, for its name.
        state: its tensors.

    Raises:
        UserError: the file is no embedding of these encoders, or their tokenizer cannot read its token.
    """
    name = f"model.embeddings={str(file)!r}"
    vectors = _vectors_by_encoder(file, state)
    clip = {part for part, encoder in encoders.items() if encoder.model.config.model_type != "t5"}
    if unmatched := set(vectors) ^ clip:
        raise UserError(
            f"{name} and the model differ in {', '.join(sorted(unmatched))}; expected an embedding for every CLIP "
            f"encoder: one token's key or {FILE_NAME_KEY} for one encoder, clip_l and clip_g for two (the token is the "
            "file's name)"
        )
    extended = dict(encoders)
    for part, tokens in vectors.items():
        extended[part] = _extended(encoders[part], part, tokens, name)
    return extended


def _vectors_by_encoder(file: Path, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    if set(state) == {FILE_NAME_KEY}:
        return {"text_encoder": {file.stem: state[FILE_NAME_KEY]}}
    if set(state) <= set(ENCODER_KEYS):
        return {ENCODER_KEYS[key]: {file.stem: value} for key, value in state.items()}
    return {"text_encoder": dict(state)}


def _extended(encoder: TextEncoder, part: str, vectors: Mapping[str, Tensor], name: str) -> TextEncoder:
    """One encoder with the tokens of `vectors`, [n, width] each, every one of which a text can use."""
    tokenizer, model = encoder.tokenizer, encoder.model
    width = model.get_input_embeddings().weight.shape[1]
    parts: dict[str, tuple[str, ...]] = {}
    for token, value in vectors.items():
        rows = value.reshape(-1, value.shape[-1])
        if rows.shape[1] != width or not bool(rows.isfinite().all()):
            raise UserError(
                f"{name} does not fit {part} and {tokenizer_of(part)}: its vectors are {list(value.shape)}, the "
                f"encoder's {width} wide and finite; expected one that was trained on this base"
            )
        parts[token] = (token, *(f"{token}_{i}" for i in range(1, len(rows))))
        if present := [p for p in parts[token] if p in tokenizer.get_vocab()]:
            raise UserError(
                f"{name} does not fit {part} and {tokenizer_of(part)}: {present[0]!r} is already in the tokenizer's "
                "vocabulary; rename the file (or the tensor), or load it once"
            )
        tokenizer.add_tokens([AddedToken(p, single_word=is_word(p), normalized=True) for p in parts[token]])
        table = model.get_input_embeddings().weight
        model.resize_token_embeddings(max(len(tokenizer), len(table)), mean_resizing=False)
        weight = model.get_input_embeddings().weight.data
        weight[tokenizer.convert_tokens_to_ids(list(parts[token]))] = rows.to(weight.device, weight.dtype)
    model.requires_grad_(False)
    extended = replace(encoder, learned={**encoder.learned, **parts})
    for token, own in parts.items():
        if unread := set(tokenizer.convert_tokens_to_ids(list(own))) - set(extended.ids(f"a {token}")):
            raise UserError(
                f"{name}: the tokenizer does not read {len(unread)} of the {len(own)} vectors of {token!r}, so they "
                "would have no effect; rename the file (or the tensor) to a word of letters, such as my-style"
            )
    return extended
