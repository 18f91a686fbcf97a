"""A question to the audit of a server: its fields, their limits, and its id."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.config import build
from concept_trak.report.publish_answer import AskConfig

MOST_CHARACTERS = 1000
"""Of each text of a question."""
MOST_SAMPLES, MOST_TOP, MOST_EXAMPLES = 64, 200, 16
ID = "[0-9a-f]{20}"
PICTURE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Question:
    """A concept asked about, as the JSON body of `POST /questions`. Its texts are those of `jobs.ask`.

    Raises:
        UserError: a field is too long or too large, or a picture has no id of this server's.
    """

    prompt: str = ""
    """The condition with the concept: a red triangle."""
    without: str = ""
    """The same condition without the concept: a triangle; empty is the model's empty condition."""
    minus: str = ""
    """Instead of `without`: a phrase that is removed from the prompt."""
    labels: str = ""
    """Instead of `prompt`, for class-conditional models: the number or name of a class."""
    image: str = ""
    """The id of a picture (`POST /pictures`): the question is about the concept in this one picture."""
    examples: tuple[str, ...] = ()
    """Ids of pictures that show the concept, instead of a prompt."""
    samples: int = 16
    """Number of samples that the query averages over, at most 64."""
    seed: int = 0
    """Seed of their noise."""
    method: tuple[str, ...] = ()
    """Some of the audit's methods; empty is all of them."""
    top: int = 24
    """Number of the best and of the worst samples, at most 200."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and len(text) > MOST_CHARACTERS:
                    raise UserError(f"{name} has {len(text)} characters; expected at most {MOST_CHARACTERS}")
        for name, most in (("samples", MOST_SAMPLES), ("top", MOST_TOP)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}; expected 1 to {most}")
        if len(self.examples) > MOST_EXAMPLES:
            raise UserError(f"examples are {len(self.examples)} pictures; expected at most {MOST_EXAMPLES}")
        for picture in (*self.examples, *([self.image] if self.image else [])):
            if not PICTURE_ID.fullmatch(picture):
                raise UserError(f"{picture[:80]!r} is no id of a picture; `POST /pictures` returns one")

    def concept(self, pictures: str) -> Concept:
        """The concept that `jobs.ask` makes of these texts.

        Args:
            pictures: the folder of the pictures, whose names are their ids.

        Raises:
            UserError: a field is missing, or two contradict each other.
        """
        texts = {name: getattr(self, name) for name in ("prompt", "without", "minus", "labels", "samples", "seed")}
        image = f"{pictures}/{self.image}" if self.image else ""
        return AskConfig(**texts, image=image, examples=tuple(f"{pictures}/{e}" for e in self.examples)).concept

    def by(self, methods: Sequence[str]) -> "Question":
        """The same question with its methods in the order of the audit, so that equal questions are equal."""
        present = [method for method in methods if method in self.method or not self.method]
        return replace(self, method=(*present, *(m for m in self.method if m not in methods)))

    def id(self, audit: str) -> str:
        """Equal for equal questions to the same audit, on every server.

        Args:
            audit: a digest of the audit's settings.
        """
        return hashlib.sha256(json.dumps([audit, asdict(self)]).encode()).hexdigest()[:20]


def question_from(values: Any) -> Question:
    """A question from the values of a JSON object.

    Raises:
        UserError: it is no object, a key is unknown, or a value is wrong.
    """
    if not isinstance(values, dict):
        raise UserError('expected a JSON object, such as {"prompt": "a red triangle", "without": "a triangle"}')
    texts = {field.name for field in fields(Question) if field.type is str}
    if wrong := [name for name in texts & values.keys() if not isinstance(values[name], str)]:
        raise UserError(f"{wrong[0]} is no text; expected a string")
    return build(Question, values)


def is_id(text: str) -> bool:
    """Whether a text, which a request may have made up, can be the id of a question."""
    return re.fullmatch(ID, text) is not None


def id_in(text: str) -> str:
    """The id in the link of an answer, or at the end of a text; the text itself where there is none."""
    named = re.search(rf"/answers/({ID})(?![0-9a-f])|(?<![0-9a-f])({ID})$", text.strip())
    return (named[1] or named[2]) if named else text


def question_schema() -> dict[str, Any]:
    """The JSON schema of a question."""
    return TypeAdapter(Question).json_schema()
