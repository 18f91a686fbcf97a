"""What is asked: a condition and the same condition without the concept; or images, or a class, that no prompt names.

`scope` chooses the states of the query: `global` asks over fresh samples of the condition, `local` about one image.

What does not go together in a concept: one sentence each, with what to do.

Other words for one concept, and a prompt without a phrase of it, written out.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from concept_trak import UserError


@dataclass(frozen=True)
class Phrasing:
    """The same concept asked in other words."""

    prompt: str
    without_prompt: str = ""
    """Empty: as the concept itself has it, written out from its `minus` or its own `without_prompt`."""


@dataclass(frozen=True)
class Concept:
    """One question, given by a `prompt` (or `labels`), by `examples` or by a `classifier`: one of them.

    Raises:
        UserError: something is missing or contradicts itself; the message names the concept.
    """

    name: str
    """Letters, digits, `.`, `_`, `-`: it names files and columns."""
    prompt: str = ""
    """The condition with the concept: "a red triangle". A model without conditions is asked about an image alone."""
    without_prompt: str = ""
    """The same without it ("red" asks for the triangle); empty is the model's empty condition."""
    labels: str = ""
    """For label-conditioned models, instead of `prompt`."""
    without_labels: str = ""
    """For label-conditioned models, instead of `without_prompt`."""
    scope: str = "global"
    """`global`: over `samples` fresh samples of the prompt; `local`: about `image`."""
    samples: int = 16
    """global: how many trajectories are averaged."""
    seed: int = 0
    """global: names the trajectories."""
    image: str = ""
    """local: the image asked about."""
    truth: dict[str, str] = field(default_factory=dict)
    """Label columns and the values that show the concept, for precision and AP; never used in a score."""
    minus: str = ""
    """Instead of `without_prompt`: a phrase of the prompt, which is then written out without it, and shown."""
    phrasings: tuple[Phrasing, ...] = ()
    """The concept in other words: the samples take turns through the prompt and these, and count alike."""
    examples: tuple[str, ...] = ()
    """Pictures that show the concept, or folders of them (at most 256): what pulls x_0hat to their mean."""
    classifier: str = ""
    """A .safetensors file of an architecture in `models/classifier.py`: what pulls x_0hat to its class `shows`."""
    shows: str = ""
    """classifier: the class that is the concept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrasings", tuple(self.phrasings))
        object.__setattr__(self, "examples", tuple(self.examples))
        if why := contradiction(self):
            raise UserError(f"concept {self.name[:100]!r}: {why}")
        for text, without in self.condition_pairs:
            if text == without:
                raise UserError(
                    f"concept {self.name!r}: both conditions are {text!r}, so there is no direction between them; "
                    "change without_prompt"
                )

    @property
    def kind(self) -> str:
        """text, examples or classifier, or image: what an image itself says, to a model without conditions."""
        kinds = {"examples": self.examples, "classifier": self.classifier, "text": self.text}
        return next((kind for kind, given in kinds.items() if given), "image")

    @property
    def text(self) -> str:
        return self.prompt or self.labels

    @property
    def without(self) -> str:
        return self._without(self.text, self.without_prompt if self.prompt else self.without_labels)

    @property
    def condition_pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (condition, the same without the concept): the prompt's, then its phrasings'; none without texts."""
        if self.kind != "text":
            return ()
        others = ((p.prompt, self._without(p.prompt, p.without_prompt or self.without_prompt)) for p in self.phrasings)
        return ((self.text, self.without), *others)

    @property
    def _written(self) -> str:
        """That the tool wrote the second conditions, where it did."""
        return f" (minus {self.minus!r}, written out)" if self.minus else ""

    def _without(self, text: str, written: str) -> str:
        try:
            return without_phrase(text, self.minus) if self.minus and not written else written
        except UserError as error:
            raise UserError(f"concept {self.name!r}: minus: {error}") from None

    @property
    def count(self) -> int:
        """How many samples are asked: one an asking about an image, else `samples`."""
        return max(1, len(self.condition_pairs)) if self.scope == "local" else self.samples

    @property
    def question(self) -> str:
        """What is asked, in one line."""
        if self.kind == "examples":
            return f"what the pictures in {', '.join(self.examples)} share"
        if self.kind == "classifier":
            return f"what {self.classifier} takes for {self.shows!r}"
        if self.kind == "image":
            return f"what {self.image} is"
        return "; ".join(f"{text!r} without it: {without!r}" for text, without in self.condition_pairs) + self._written


def contradiction(concept: Any) -> str:
    """Why a `Concept` with these fields cannot be asked; empty if it can."""
    return next((why for wrong, why in (*_given(concept), *_words(concept), *_scope(concept)) if wrong), "")


def _given(c: Any) -> list[tuple[bool, str]]:
    """A name, and one way of saying what the concept is."""
    ways = {"prompt": c.prompt, "labels": c.labels, "examples": c.examples, "classifier": c.classifier}
    given = [key for key, value in ways.items() if value]
    return [
        (
            not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", c.name),
            "name must be at most 100 letters, digits, '.', '_' or '-', because it names files and columns",
        ),
        (
            {"prompt", "labels"} <= set(given) or not (given or c.image),
            "give either prompt or labels: the condition that has the concept; or, where no prompt names it, examples "
            "or a classifier",
        ),
        (
            len(given) > 1,
            f"{' and '.join(given)} ask in different ways; give one of them, and the other as a concept of its own",
        ),
        (
            bool(c.classifier) != bool(c.shows),
            "classifier and shows go together: the file, and the name of its class that is the concept",
        ),
    ]


def _words(c: Any) -> list[tuple[bool, str]]:
    """The second condition, and other words."""
    wordless = not (c.prompt or c.labels)
    pairless = bool(c.without_prompt or c.without_labels or c.minus or c.phrasings)
    return [
        (
            wordless and pairless,
            "without_prompt, without_labels, minus and phrasings go with a prompt; examples and classifier have no "
            "second condition",
        ),
        (
            bool(c.without_labels if c.prompt else c.without_prompt),
            "prompt goes with without_prompt, and labels with without_labels",
        ),
        (
            bool(c.minus and (c.without_prompt or c.labels)),
            "minus writes out without_prompt from prompt; give prompt and one of the two",
        ),
        (bool(c.phrasings and c.labels), "phrasings are other words for a prompt, and labels have none; ask for each"),
        (any(not p.prompt for p in c.phrasings), "a phrasing has no prompt; leave it out, or write what it says"),
        (
            len({c.prompt, *(p.prompt for p in c.phrasings)}) <= len(c.phrasings),
            "two phrasings are the same; a prompt that stands twice would count twice",
        ),
    ]


def _scope(c: Any) -> list[tuple[bool, str]]:
    ways = 1 + len(c.phrasings)
    return [
        (c.scope not in ("global", "local"), f"scope={c.scope!r}; expected global or local"),
        ((c.scope == "local") != bool(c.image), "scope=local needs image=<path>, and only it does"),
        (c.samples < 1, f"samples={c.samples}; expected at least 1"),
        (
            c.scope == "global" and c.samples < ways,
            f"samples={c.samples} cannot be split over {ways} phrasings; expected at least one for each",
        ),
    ]


# Left over at the end of a prompt, these name nothing: "a photo of a" is "a photo".
DANGLING = ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with")


def without_phrase(prompt: str, phrase: str) -> str:
    """`prompt` minus every `phrase` in it, whole words and in any case, as a person would write it.

    What is left is read as text again: "a" and "an" follow the next word, punctuation that joins nothing and little
    words at the end go. "a red triangle" minus "red" is "a triangle"; minus "red triangle" nothing is left.

    Raises:
        UserError: the phrase is not in the prompt.
    """
    words = r"\s+".join(map(re.escape, phrase.split()))
    whole = rf"(?<!\w){words}(?!\w)"
    if not words or not re.search(whole, prompt, re.IGNORECASE):
        raise UserError(f"{phrase!r} is not in {prompt!r}; give a phrase of the prompt, or write without_prompt")
    followed = rf"\b(an?)\s+{whole}[\s,]*(?=(\w))"
    rest = re.sub(followed, lambda match: _article(*match.groups()) + " ", prompt, flags=re.IGNORECASE)
    return _tidy(re.sub(whole, "", rest, flags=re.IGNORECASE))


def _article(word: str, letter: str) -> str:
    """a or an before a word that begins with `letter`, capital if it was."""
    return word[0] + ("n" if letter in "aeiouAEIOU" else "")


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
