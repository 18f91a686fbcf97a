"""Whether a model shows a concept to begin with: where it does not, alphas predict nothing and an edit is refused.

That the concept moves the prediction is necessary and proves little: an untrained network moves too. So where a judge
stands beside the model and the concept's `truth` names what it knows, the judge looks at what the model draws.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from concept_trak.classifier import Classifier, presence
from concept_trak.concept import UNGUIDED, Concept, query_batch
from concept_trak.counterfactual import judge_of
from concept_trak.data.two_factors import SHAPES3
from concept_trak.denoiser import Denoiser
from concept_trak.trajectory import generate


@dataclass(frozen=True)
class Gate:
    """The least that an edit asks of the model."""

    moves: float = 0.001
    """|eps_c - eps_c-| / |eps_c| over the states (erase)."""
    shows: float = 0.5
    """Mean presence in pictures of the prompt, where a classifier.safetensors of jobs.train stands beside the model."""
    samples: int = 8
    """Pictures the judge looks at."""

    def __post_init__(self) -> None:
        if self.moves < 0 or not 0 <= self.shows <= 1 or self.samples < 1:
            raise ValueError(f"edit.gate={self}; expected moves >= 0, shows in 0 ... 1, samples >= 1")


def shown(denoiser: Denoiser, model: str, concept: Concept, samples: int) -> float | None:
    """The concept's mean presence in what the model draws; None where no judge can say."""
    named = {"thing": concept.truth.get(SHAPES3.factor), "colour": concept.truth.get("colour")}
    if not any(named.values()) or not (Path(model) / "classifier.safetensors").is_file():
        return None
    asked = replace(concept, samples=samples, scope="global", image="")
    x_0 = generate(denoiser, query_batch(denoiser, asked), UNGUIDED, concept.seed)
    pixels = denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1)
    judge: Classifier = judge_of(model, SHAPES3)
    return float(presence(judge, pixels, **named).mean())


def require(concept: Concept, gate: Gate, moves: float | None, shows: float | None) -> None:
    """Refuse a concept that is under the gate; what is None was not measured.

    Raises:
        ValueError: saying by how much.
    """
    if moves is not None and moves < gate.moves:
        raise ValueError(
            f"concept {concept.name!r} is not expressed: {concept.text!r} moves the prediction from that for "
            f"{concept.without!r} by {moves:.4f} of its size, under edit.gate.moves={gate.moves:g}; change the prompts "
            "or train longer"
        )
    if shows is not None and shows < gate.shows:
        raise ValueError(
            f"concept {concept.name!r} is not expressed: the judge sees it in pictures of {concept.text!r} with "
            f"{shows:.2f}, under edit.gate.shows={gate.shows:g}; choose a concept that the model draws"
        )
