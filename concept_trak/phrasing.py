"""Other words for one concept, and a prompt without a phrase of it, written out."""

import re
from dataclasses import dataclass

# Left over at the end of a prompt, these name nothing: "a photo of a" is "a photo".
DANGLING = ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with")


@dataclass(frozen=True)
class Phrasing:
    """The same concept asked in other words."""

    prompt: str
    without_prompt: str = ""
    """Empty: as the concept itself has it, written out from its `minus` or its own `without_prompt`."""


def without_phrase(prompt: str, phrase: str) -> str:
    """`prompt` minus every `phrase` in it, whole words and in any case, as a person would write it.

    What is left is read as text again: "a" and "an" follow the next word, punctuation that joins nothing and little
    words at the end go. "a red triangle" minus "red" is "a triangle"; minus "red triangle" nothing is left.

    Raises:
        ValueError: the phrase is not in the prompt.
    """
    words = r"\s+".join(map(re.escape, phrase.split()))
    whole = rf"(?<!\w){words}(?!\w)"
    if not words or not re.search(whole, prompt, re.IGNORECASE):
        raise ValueError(f"{phrase!r} is not in {prompt!r}; give a phrase of the prompt, or write without_prompt")
    followed = rf"\b(an?)\s+{whole}[\s,]*(?=(\w))"
    rest = re.sub(followed, lambda found: _article(*found.groups()) + " ", prompt, flags=re.IGNORECASE)
    return _tidy(re.sub(whole, "", rest, flags=re.IGNORECASE))


def _article(said: str, letter: str) -> str:
    """a or an before a word that begins with `letter`, capital if it was."""
    return said[0] + ("n" if letter in "aeiouAEIOU" else "")


def _tidy(text: str) -> str:
    """One space between words, punctuation only between them or as the last stop, no dangling word at the end."""
    text = re.sub(r"\s+([,;:.])", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r"([,;:])[,;:. ]*(?=[,;:.])", "", text).strip(" ,;:")
    stop = "." if text.endswith(".") else ""
    words = text.removesuffix(".").split(" ")
    while words and words[-1].strip(",;:").lower() in DANGLING:
        words.pop()
    rest = " ".join(words).strip(" ,;:")
    return rest + stop if rest else ""
