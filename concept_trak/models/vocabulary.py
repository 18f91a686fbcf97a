"""The words a small pipeline reads: CLIP's tokenizer with a token for each."""

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from transformers import CLIPTokenizer

WORDS = ("a", "red", "green", "blue", "triangle", "circle", "square")
LENGTH = 8
"""Tokens per text, both ends included: three words fit, and nothing may assume CLIP's 77."""
START, END = 0, 1
"""Numbers of the two tokens that stand around a text; the second also pads it."""


def tokenizer(words: Sequence[str] = WORDS, length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with one token per word of `words` (letters a to z); other words fall into pieces.

    A word is merged from its end (`e d</w>`, then `r ed</w>`). Since each merge ends in `</w>`, none can fire in the
    middle of another word, which merging from the front would allow (`re` of "red" would break "green").
    """
    merges: dict[Any, None] = {}  # pairs in order, each once
    for word in words:
        for start in range(len(word) - 2, -1, -1):
            merges[word[start], word[start + 1 :] + "</w>"] = None
    tokens = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase, *(letter + "</w>" for letter in ascii_lowercase)]
    tokens += ["".join(pair) for pair in merges]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=list(merges), model_max_length=length
    )
