"""What is asked: a condition and the same condition without the concept; or images, or a class, that no prompt names.

`scope` chooses the states of the query: `global` asks over fresh samples of the condition, `local` about one image.
"""

from dataclasses import dataclass, field

from concept_trak.contradiction import contradiction
from concept_trak.phrasing import Phrasing, without_phrase


@dataclass(frozen=True)
class Concept:
    """One question, given by a `prompt` (or `labels`), by `examples` or by a `classifier`: one of them.

    Raises:
        ValueError: something is missing or contradicts itself; the message names the concept.
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
    """A .safetensors file of one of the architectures in `judge.py`: what pulls x_0hat to its class `shows`."""
    shows: str = ""
    """classifier: the class that is the concept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrasings", tuple(self.phrasings))
        object.__setattr__(self, "examples", tuple(self.examples))
        if why := contradiction(self):
            raise ValueError(f"concept {self.name!r}: {why}")
        for text, without in self.askings:
            if text == without:
                raise ValueError(
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
    def askings(self) -> tuple[tuple[str, str], ...]:
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
        except ValueError as error:
            raise ValueError(f"concept {self.name!r}: minus: {error}") from None

    @property
    def count(self) -> int:
        """How many samples are asked: one an asking about an image, else `samples`."""
        return max(1, len(self.askings)) if self.scope == "local" else self.samples

    @property
    def question(self) -> str:
        """What is asked, in one line."""
        if self.kind == "examples":
            return f"what the pictures in {', '.join(self.examples)} share"
        if self.kind == "classifier":
            return f"what {self.classifier} takes for {self.shows!r}"
        if self.kind == "image":
            return f"what {self.image} is"
        return "; ".join(f"{text!r} without it: {without!r}" for text, without in self.askings) + self._written
