"""Whether a model shows a concept to begin with: where it does not, alphas predict nothing and an edit is refused.

That a prompt moves the prediction proves nothing: an untrained network moves too, and no less. So the judge that
stands beside a model looks at what it draws, where the concept's `truth` names what it knows.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from concept_trak.asking import UNGUIDED, query_batch
from concept_trak.classifier import Classifier, presence
from concept_trak.concept import Concept
from concept_trak.counterfactual import judge_of
from concept_trak.data.two_factors import SETS, SHAPES3, TwoFactors
from concept_trak.denoiser import Denoiser
from concept_trak.trajectory import generate

JUDGE = "classifier.safetensors"


@dataclass(frozen=True)
class Gate:
    """The least that an edit asks of the model."""

    shows: float = 0.5
    """Mean presence in pictures of the prompt, where a classifier.safetensors of jobs.train stands beside the model."""
    samples: int = 8
    """Pictures the judge looks at."""

    def __post_init__(self) -> None:
        if not 0 <= self.shows <= 1 or self.samples < 1:
            raise ValueError(f"edit.gate={self}; expected shows in 0 ... 1, samples >= 1")


def shown(denoiser: Denoiser, model: str, concept: Concept, samples: int) -> float | None:
    """The concept's mean presence in what the model draws; None where no judge can say."""
    if not (Path(model) / JUDGE).is_file():
        return None
    kinds = known_to(model)
    named = {"thing": concept.truth.get(kinds.factor), "colour": concept.truth.get("colour")}
    if not any(named.values()):
        return None
    asked = replace(concept, samples=samples, scope="global", image="")
    x_0 = generate(denoiser, query_batch(denoiser, asked), UNGUIDED, concept.seed)
    pixels = denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1)
    judge: Classifier = judge_of(model, kinds)
    return float(presence(judge, pixels, **named).mean())


def known_to(model: str) -> TwoFactors:
    """What the judge beside a model knows: the set that the model's training.json names (none: jobs.train's first).

    Raises:
        ValueError: there is no training.json, or it names no set.
    """
    path = Path(model) / "training.json"
    try:
        name = json.loads(path.read_text())["settings"].get("set", SHAPES3.name)
        return SETS[name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} does not say what the judge beside it knows ({error!r}); expected settings.set to be one of: "
            f"{', '.join(SETS)}, as jobs.train writes it"
        ) from None


def require(concept: Concept, gate: Gate, shows: float | None) -> None:
    """Refuse a concept that is under the gate; what is None was not measured.

    Raises:
        ValueError: saying by how much.
    """
    if shows is not None and shows < gate.shows:
        raise ValueError(
            f"concept {concept.name!r} is not expressed: the judge sees it in pictures of {concept.text!r} with "
            f"{shows:.2f}, under edit.gate.shows={gate.shows:g}; choose a concept that the model draws"
        )
