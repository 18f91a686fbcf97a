"""A concept: a condition and the same condition without the concept, or example images, or a class of a classifier.

`scope` selects the states of the query: `global` uses fresh samples of the condition, `local` one image. The module
also checks that a concept's fields go together, and removes a phrase from a prompt (`minus`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from concept_trak import UserError


@dataclass(frozen=True)
class Phrasing:
    """The same concept in other words."""

    prompt: str
    """The condition with the concept."""
    without_prompt: str = ""
    """The condition without it; if empty, it is made by the concept's `minus`, or is the concept's `without_prompt`."""


@dataclass(frozen=True)
class Concept:
    """One concept. Give exactly one of `prompt`, `labels`, `examples` and `classifier`.

    For a model without conditions, give `image`, `examples` or `classifier`.

    Raises:
        UserError: a field is missing, or two fields contradict each other; the message names the concept.
    """

    name: str
    """Letters, digits, `.`, `_`, `-`; part of file and column names."""
    prompt: str = ""
    """The condition with the concept: "a red triangle"."""
    without_prompt: str = ""
    """The same condition without the concept: "a triangle" for red; empty is the model's empty condition."""
    labels: str = ""
    """Instead of `prompt`, for class-conditional models: the number or name of a class."""
    without_labels: str = ""
    """Instead of `without_prompt`, for class-conditional models."""
    scope: str = "global"
    """`global`: the query averages over `samples` fresh samples of the prompt; `local`: it is about `image`."""
    samples: int = 16
    """global: number of samples that the query averages over."""
    seed: int = 0
    """global: seed of the samples' noise."""
    image: str = ""
    """local: path of the image."""
    conditioning_image: str = ""
    """For a model that takes an image beside the text (ControlNet, IP-Adapter): its path. Both conditions have it; the
    empty condition of an IP-Adapter has none."""
    truth: dict[str, str] = field(default_factory=dict)
    """Label columns and the values that show the concept, for precision and AP. No score uses them."""
    minus: str = ""
    """Instead of `without_prompt`: a phrase that is removed from the prompt; the page shows the result."""
    phrasings: tuple[Phrasing, ...] = ()
    """Other prompts for the concept. The samples are divided among all prompts, which have the same weight."""
    examples: tuple[str, ...] = ()
    """Pictures that show the concept, or folders of them, at most 256: the query pulls x_0hat to their mean."""
    classifier: str = ""
    """A .safetensors file of an architecture in `models/classifier.py`: the query pulls x_0hat to its class `shows`."""
    shows: str = ""
    """The class of the classifier that is the concept."""

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
        """`text`, `examples` or `classifier`; or `image`, for a model without conditions."""
        kinds = {"examples": self.examples, "classifier": self.classifier, "text": self.text}
        return next((kind for kind, value in kinds.items() if value), "image")

    @property
    def text(self) -> str:
        """The condition with the concept: `prompt` or `labels`."""
        return self.prompt or self.labels

    @property
    def without(self) -> str:
        """The same condition without the concept, written out if `minus` makes it."""
        return self._without(self.text, self.without_prompt if self.prompt else self.without_labels)

    @property
    def condition_pairs(self) -> tuple[tuple[str, str], ...]:
        """(condition, the same without the concept) of the prompt and then of each phrasing; empty without texts."""
        if self.kind != "text":
            return ()
        others = ((p.prompt, self._without(p.prompt, p.without_prompt or self.without_prompt)) for p in self.phrasings)
        return ((self.text, self.without), *others)

    @property
    def _written(self) -> str:
        """A note that `minus` made the second conditions; empty without `minus`."""
        return f" (minus {self.minus!r}, written out)" if self.minus else ""

    def _without(self, text: str, written: str) -> str:
        try:
            return without_phrase(text, self.minus) if self.minus and not written else written
        except UserError as error:
            raise UserError(f"concept {self.name!r}: minus: {error}") from None

    @property
    def count(self) -> int:
        """The number of samples of the query: `samples`, or one for each phrasing with scope=local."""
        return max(1, len(self.condition_pairs)) if self.scope == "local" else self.samples

    @property
    def question(self) -> str:
        """The question in one line."""
        if self.kind == "examples":
            return f"what the pictures in {', '.join(self.examples)} share"
        if self.kind == "classifier":
            return f"what {self.classifier} takes for {self.shows!r}"
        if self.kind == "image":
            return f"what {self.image} is"
        both = "both " * all(without for _, without in self.condition_pairs)
        image = f" ({both}with the image {self.conditioning_image})" if self.conditioning_image else ""
        pairs = "; ".join(f"{text!r} without it: {without!r}" for text, without in self.condition_pairs)
        return pairs + self._written + image


def contradiction(concept: Any) -> str:
    """Why a `Concept` with these fields cannot be asked; empty if it can."""
    return next((why for wrong, why in (*_given(concept), *_words(concept), *_scope(concept)) if wrong), "")


def _given(c: Any) -> list[tuple[bool, str]]:
    """Mistakes in the name, and in the choice of prompt, labels, examples or classifier."""
    ways = {"prompt": c.prompt, "labels": c.labels, "examples": c.examples, "classifier": c.classifier}
    keys = [key for key, value in ways.items() if value]
    return [
        (
            not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", c.name),
            "name must be at most 100 letters, digits, '.', '_' or '-', because it names files and columns",
        ),
        (
            {"prompt", "labels"} <= set(keys) or not (keys or c.image),
            "give either prompt or labels: the condition that has the concept; or, where no prompt names it, examples "
            "or a classifier",
        ),
        (
            len(keys) > 1,
            f"{' and '.join(keys)} ask in different ways; give one of them, and the other as a concept of its own",
        ),
        (
            bool(c.classifier) != bool(c.shows),
            "classifier and shows go together: the file, and the name of its class that is the concept",
        ),
    ]


def _words(c: Any) -> list[tuple[bool, str]]:
    """Mistakes in the second condition and in phrasings."""
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


# Words that name nothing at the end of a prompt: "a photo of a" becomes "a photo".
DANGLING = ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with")


def without_phrase(prompt: str, phrase: str) -> str:
    """`prompt` without every occurrence of `phrase`, as whole words and in any case.

    The rest becomes proper text: "a" and "an" fit the next word, and punctuation that joins nothing and small words at
    the end are removed. "a red triangle" minus "red" is "a triangle"; minus "red triangle" it is empty.

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
    """One space between words, punctuation only between words or as the full stop, no dangling word at the end."""
    text = re.sub(r"\s+([,;:.])", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r"([,;:])[,;:. ]*(?=[,;:.])", "", text).strip(" ,;:")
    stop = "." if text.endswith(".") else ""
    words = text.removesuffix(".").split(" ")
    while words and words[-1].strip(",;:").lower() in DANGLING:
        words.pop()
    rest = " ".join(words).strip(" ,;:")
    return rest + stop if rest else ""
