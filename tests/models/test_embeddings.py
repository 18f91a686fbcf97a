"""Textual inversions as A1111, Civitai and SDXL's trainers write them; one without an effect is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from concept_trak import UserError
from concept_trak.models import load_model
from concept_trak.models.text_encoder import TextEncoder
from tests.models.families import FAMILIES, seeded


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp(name) for name in ("stable_diffusion_eps", "sdxl", "sd3_t5")}
    for name, path in paths.items():
        seeded(FAMILIES[name].build).save_pretrained(path)
    return paths


def rows(base: Path, encoder: str, *words: str) -> Tensor:
    """The vectors of words that an encoder knows, [n, width]."""
    opened = load_model(str(base)).text_encoders[encoder]
    ids = [opened.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in words]
    return opened.model.get_input_embeddings().weight[ids].detach().clone()


@pytest.mark.parametrize("words", [("red",), ("red", "circle")])
@pytest.mark.parametrize("name", ["my-style", "ct", "MyStyle_v2"])
def test_an_embedding_of_civitai_is_the_token_of_its_files_name(bases, tmp_path, name, words):
    base = bases["stable_diffusion_eps"]
    file = tmp_path / f"{name}.safetensors"
    save_file({"emb_params": rows(base, "text_encoder", *words)}, file)
    ours, plain = load_model(str(base), embeddings=[str(file)]), load_model(str(base))
    read = ours.encode([f"a {name}"])["text"]
    torch.testing.assert_close(read, plain.encode([f"a {' '.join(words)}"])["text"])
    assert not torch.allclose(read, plain.encode([f"a {name}"])["text"]), "the embedding has no effect"
    assert "emb_params" not in ours.text_encoders["text_encoder"].tokenizer.get_vocab()


def test_two_embeddings_of_civitai_do_not_collide(bases, tmp_path):
    base = bases["stable_diffusion_eps"]
    for name, word in (("one-style", "red"), ("other-style", "blue")):
        save_file({"emb_params": rows(base, "text_encoder", word)}, tmp_path / f"{name}.safetensors")
    ours = load_model(str(base), embeddings=[str(tmp_path / f"{n}.safetensors") for n in ("one-style", "other-style")])
    expected = load_model(str(base)).encode(["a red blue"])["text"]
    torch.testing.assert_close(ours.encode(["a one-style other-style"])["text"], expected)


@pytest.mark.parametrize("family", ["sdxl", "sd3_t5"])
def test_a_pair_of_encoders_gets_a_pair_of_embeddings(bases, tmp_path, family):
    """T5, which no embedding has vectors for, reads the token's letters as before."""
    base, file = bases[family], tmp_path / "my-style.safetensors"
    pair = {"clip_l": rows(base, "text_encoder", "red"), "clip_g": rows(base, "text_encoder_2", "red")}
    save_file(pair, file)
    ours, plain = load_model(str(base), embeddings=[str(file)]), load_model(str(base))
    for encoder in ("text_encoder", "text_encoder_2"):
        read, meant = (
            d.text_encoders[encoder].before_last([text])[0] for d, text in ((ours, "a my-style"), (plain, "a red"))
        )
        torch.testing.assert_close(read, meant)
    torch.testing.assert_close(ours.encode(["a my-style"])["pooled"], plain.encode(["a red"])["pooled"])


REFUSED = {
    "half_a_pair": ("sdxl", {"clip_l": (1, 16)}, r"differ in text_encoder_2; expected an embedding for every CLIP enc"),
    "one_for_two": ("sdxl", {"emb_params": (1, 16)}, "differ in text_encoder_2"),
    "two_for_one": ("stable_diffusion_eps", {"clip_l": (1, 64), "clip_g": (1, 24)}, "differ in text_encoder_2"),
    "width": ("stable_diffusion_eps", {"emb_params": (1, 5)}, "does not fit text_encoder and tokenizer"),
    "pivotal": ("sdxl", {"text_encoders_0": (2, 16), "text_encoders_1": (2, 24)}, "differ in text_encoder_2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_embedding_of_another_model_is_refused(bases, tmp_path, case):
    family, shapes, expected = REFUSED[case]
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match=expected):
        load_model(str(bases[family]), embeddings=[str(tmp_path / "style.safetensors")])


def test_a_token_that_the_tokenizer_knows_already_is_refused(bases, tmp_path):
    save_file({"red</w>": torch.ones(1, 64)}, tmp_path / "red.safetensors")
    with pytest.raises(UserError, match=r"does not fit text_encoder and tokenizer: 'red</w>' is already in the"):
        load_model(str(bases["stable_diffusion_eps"]), embeddings=[str(tmp_path / "red.safetensors")])


def test_a_token_that_no_text_can_contain_is_refused(bases, tmp_path, monkeypatch):
    """A text that is cut up before the tokenizer sees it: the vectors would never be used."""
    save_file({"emb_params": torch.ones(3, 64)}, tmp_path / "style.safetensors")
    monkeypatch.setattr(TextEncoder, "_with_parts", lambda self, text: text)
    with pytest.raises(UserError, match="does not read 2 of the 3 vectors of 'style', so they would have no effect"):
        load_model(str(bases["stable_diffusion_eps"]), embeddings=[str(tmp_path / "style.safetensors")])


def test_a_token_is_not_found_within_a_longer_word(bases, tmp_path):
    """`ct` would else take its place in every picture."""
    base = bases["stable_diffusion_eps"]
    save_file({"emb_params": torch.ones(2, 64)}, tmp_path / "ct.safetensors")
    ours, plain = load_model(str(base), embeddings=[str(tmp_path / "ct.safetensors")]), load_model(str(base))
    for text in ("pict", "cta", "act"):
        assert torch.equal(ours.encode([text])["text"], plain.encode([text])["text"]), text
    torch.testing.assert_close(ours.encode(["a Ct"])["text"], ours.encode(["a ct"])["text"])
