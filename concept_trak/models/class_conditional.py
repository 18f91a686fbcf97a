"""Pipelines that are conditioned on a class: what a concept or a label column says, as a number."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from concept_trak.attribution.denoiser import Condition, Conditioning
from concept_trak.models.loading import pipeline_settings
from concept_trak.models.pipeline import Pipeline


@dataclass(frozen=True)
class Classes:
    """`count` classes 0 ... count - 1, some with names; `empty` is the one that stands for none, where there is one."""

    count: int
    names: dict[str, int]
    empty: int | None = None

    def number(self, text: str) -> int:
        """The class that a number ("207") or a name ("golden retriever") says; "" is the empty one.

        Raises:
            ValueError: there is none.
        """
        said = text.strip()
        if not said and self.empty is not None:
            return self.empty
        known = {**{str(i): i for i in range(self.count)}, **self.names}
        if said in known:
            return known[said]
        if not said:
            raise ValueError(
                "the model has no class that stands for none, so every condition needs one: give concepts "
                "without_labels, and set model.negative=other_label"
            )
        some = f", or a name such as {', '.join(map(repr, list(self.names)[:3]))}" if self.names else ""
        raise ValueError(
            f"{text!r} is no class of the model; expected a number in 0 ... {self.count - 1}{some}. Numbers and names "
            "stand in the data's label column (data.caption_column) and in labels and without_labels of a concept."
        )


def class_names(path: Path) -> dict[str, int]:
    """The names in model_index.json's `id2label`, as DiTPipeline reads them: several for a class, set apart by commas.

    A name that two classes share is the later one's, as there.
    """
    given = pipeline_settings(path).get("id2label") or {}
    return {one.strip(): int(number) for number, names in given.items() for one in names.split(",")}


class ClassConditional(Pipeline):
    """A condition has `label` [b], the number of a class; without classes `nothing` [b, 1], which no network sees.

    Families read `classes` when they open their directory.
    """

    classes: Classes | None

    @property
    def conditioning(self) -> Conditioning:
        return "none" if self.classes is None else "class"

    def encode(self, texts: Sequence[str]) -> Condition:
        """The classes; where there are none, captions of training images say nothing and are not read."""
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
