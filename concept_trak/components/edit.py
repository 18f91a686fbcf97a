"""An edited copy of the model directory, and when an edit is refused.

    theta_i <- factor theta_i  for every chosen i        factor = 0 zeroes (CAD), values between 0 and 1 suppress softly

An edit is refused where the model does not show the concept, because alphas then predict nothing. That a prompt moves
the prediction does not prove that it shows: the prediction of an untrained network moves as much. So the classifier
beside the model looks at generated pictures, where the concept's `truth` names what the classifier knows.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.components.choice import Choice, Masks
from concept_trak.components.workers import ComponentsWorker, MeasuredConcept, MeasureTask, scaled
from concept_trak.evaluation.judge import concept_presence


@dataclass(frozen=True)
class PresenceThreshold:
    """How much of a concept a model must show before it is edited for less of it."""

    least: float = 0.5
    """Mean presence in pictures of the prompt, in 0 ... 1, by the classifier.safetensors of jobs.train in the model's
    folder. A model without one is not checked."""
    samples: int = 8
    """Pictures that the classifier looks at."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or self.samples < 1:
            raise UserError(
                f"edit.presence.least={self.least:g}, samples={self.samples}; expected 0 <= least <= 1 and samples >= 1"
            )


def require_presence(concept: Concept, threshold: PresenceThreshold, presence: float | None) -> None:
    """Refuse a concept that the model hardly shows.

    Args:
        presence: mean presence in generated pictures, in [0, 1]; None if it was not measured.

    Raises:
        UserError: the presence is below the threshold.
    """
    if presence is not None and presence < threshold.least:
        raise UserError(
            f"concept {concept.name!r} is not expressed: the judge sees it in pictures of {concept.text!r} with "
            f"{presence:.2f}, under edit.presence.least={threshold.least:g}; choose a concept that the model draws"
        )


@dataclass(frozen=True)
class EditTask(Task):
    """An edited copy of the model.

    Attributes:
        measured: the concept whose parameters are edited.
        choice: which of them.
        factor: what each is multiplied by.
        out: the folder to write.
        presence: what the model must show of the concept before an edit for less of it.
    """

    measured: MeasuredConcept
    choice: Choice
    factor: float
    out: str
    presence: PresenceThreshold

    @property
    def label(self) -> str:
        return self.measured.concept.name


@dataclass(frozen=True)
class EditResult:
    """How many parameters were edited."""

    edited: int


class EditWorker(ComponentsWorker):
    """Writes an edited copy of the model directory, on the machine where it should be."""

    def __call__(self, task: EditTask, attempt: Attempt) -> EditResult:
        """Write the copy.

        Raises:
            UserError: the model shows too little of the concept, so that alphas predict nothing.
        """
        settings, concept = self.settings, task.measured.concept
        shows = None
        if not task.choice.wants_more(settings.objective):
            shows = concept_presence(self.denoiser, settings.model.path, concept, task.presence.samples)
        require_presence(concept, task.presence, shows)
        masks = self.choose(task.measured, task.choice)
        record = {
            "model": settings.identity,
            "objective": settings.objective,
            "concept": asdict(concept),
            "prompts": _prompts(task.measured.units),
            "references": [_prompts(units) for units in task.measured.references],
            "choice": asdict(task.choice),
            "unit": settings.unit,
            "probe": asdict(settings.probe),
            "presence": asdict(task.presence),
            "shows": shows,
        }
        write_edited_model(settings.model.path, task.out, masks, task.factor, record)
        return EditResult(sum(int(mask.sum()) for mask in masks.values()))


def _prompts(units: tuple[MeasureTask, ...]) -> list[dict[str, Any]]:
    return [
        {"name": u.concept.name, "prompt": u.concept.text, "without": u.concept.without, "seed": u.seed} for u in units
    ]


def write_edited_model(model: str, out: str, masks: Masks, factor: float, record: dict[str, Any]) -> None:
    """Write a copy of the model directory with the edit, and a record of it as `edit.json`.

    Raises:
        UserError: `out` exists, or the directory does not have the chosen tensors as safetensors.
    """
    target = Path(out)
    if target.exists():
        raise UserError(f"edit.out={out} exists; an edit overwrites nothing: delete the folder or choose another")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        copy = Path(scratch) / "model"
        shutil.copytree(model, copy)
        if missing := set(masks) - _rewritten(copy, masks, factor):
            raise UserError(f"{model} has no safetensors with {sorted(missing)[0]!r}; save the pipeline as safetensors")
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        whole = {**record, "factor": factor, "edited": sum(counts.values()), "by_tensor": counts}
        (copy / "edit.json").write_text(json.dumps(whole, indent=2) + "\n")
        copy.rename(target)


def _rewritten(folder: Path, masks: Masks, factor: float) -> set[str]:
    """The chosen tensors that the network's files contain, after they were rewritten."""
    names = set[str]()
    for file in sorted(file for part in ("unet", "transformer") for file in (folder / part).glob("*.safetensors")):
        state = load_file(file)
        if own := set(masks) & set(state):
            save_file(scaled(state, masks, factor), file, metadata={"format": "pt"})
            names |= own
    return names
