"""Pipelines that are conditioned on a class: a concept or a label column gives its number or its name."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Conditioning
from concept_trak.models.pipeline import Pipeline
from concept_trak.models.pipeline_folder import pipeline_settings


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        count: the classes are 0 ... count - 1.
        names: some of them by name.
        empty: the number of the empty class, where the model has one.
    """

    count: int
    names: dict[str, int]
    empty: int | None = None

    def number(self, text: str) -> int:
        """The class of a number ("207") or of a name ("golden retriever"); "" is the empty class.

        Raises:
            UserError: there is no such class.
        """
        label = text.strip()
        if not label and self.empty is not None:
            return self.empty
        numbers = {**{str(i): i for i in range(self.count)}, **self.names}
        if label in numbers:
            return numbers[label]
        if not label:
            raise UserError(
                "the model has no empty class, so every condition needs a class: give concepts without_labels, and set "
                "model.negative=other_label"
            )
        examples = f", or a name such as {', '.join(map(repr, list(self.names)[:3]))}" if self.names else ""
        raise UserError(
            f"{text!r} is no class of the model; expected a number in 0 ... {self.count - 1}{examples}. Classes come "
            "from the data's label column (data.caption_column) and from labels and without_labels of a concept."
        )


def class_names(path: Path) -> dict[str, int]:
    """The names in model_index.json's `id2label`, as DiTPipeline reads them: several for a class, divided by commas.

    A name that two classes share belongs to the later one, as in DiTPipeline.
    """
    names_of = pipeline_settings(path).get("id2label") or {}
    return {name.strip(): int(number) for number, names in names_of.items() for name in names.split(",")}


class ClassConditional(Pipeline):
    """A condition has `label` [b], the number of a class; without classes `nothing` [b, 1], which no network reads.

    A family sets `classes` when it opens its directory; None is an unconditional model.
    """

    classes: Classes | None

    @property
    def conditioning(self) -> Conditioning:
        return "none" if self.classes is None else "class"

    def encode(self, texts: Sequence[str]) -> Condition:
        """The classes of the texts. An unconditional model ignores the captions of training images."""
        if self.classes is None:
            return {"nothing": torch.zeros(len(texts), 1, device=self.device)}
        return {"label": torch.tensor([self.classes.number(text) for text in texts], device=self.device)}

    def spelled(self, text: str) -> str:
        return text if self.classes is None else str(self.classes.number(text))

    def require_whole(self, text: str) -> None:
        self.spelled(text)

    def identity(self) -> dict[str, str]:
        names = json.dumps({} if self.classes is None else self.classes.names, sort_keys=True).encode()
        return {**super().identity(), "classes": hashlib.sha256(names).hexdigest()}
