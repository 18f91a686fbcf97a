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

from concept_trak import UserError
from concept_trak.models.text_encoder import LearnedTokens, TextEncoder, tokenizer_of

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


def _extended(encoder: TextEncoder, part: str, tokens: dict[str, Tensor], name: str) -> TextEncoder:
    """One encoder with the tokens, each of which must change how a text is read."""
    before = set(encoder.tokenizer.get_vocab())
    try:
        LearnedTokens().load_textual_inversion(tokens, tokenizer=encoder.tokenizer, text_encoder=encoder.model)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{name} does not fit {part} and {tokenizer_of(part)} ({error}); expected one that was trained on this base"
        ) from error
    encoder.model.requires_grad_(False)
    extended = replace(encoder, has_embeddings=True)
    added = {encoder.tokenizer.convert_tokens_to_ids(token) for token in set(encoder.tokenizer.get_vocab()) - before}
    for token in tokens:
        read = extended.tokens([f"a {token}"]).input_ids[0].tolist()
        if not added & set(read):
            raise UserError(
                f"{name}: the tokenizer does not read {token!r} as one token, so the embedding would have no effect; "
                "rename the file (or the tensor) to a word of letters, such as my-style"
            )
    return extended
