"""A method is a row: which states, which direction, on each side; unit norm; weight. A new method is a new row."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from concept_trak.attribution.direction import DIRECTIONS, WEIGHTS
from concept_trak.attribution.state import Probe
from concept_trak.attribution.trajectory import TRAJECTORIES

# Directions that only a concept can point.
CONCEPT_DIRECTIONS = ("concept_reward", "example_reward", "classifier_reward")


@dataclass(frozen=True)
class Method:
    """How training samples and queries become features, and how a finished score is weighted.

    `unit`: every per-state gradient is divided by its Euclidean norm, on both sides, over `all` attributable
    parameters, or each `layer`'s by its own, so that no few layers decide.
    `weight`: a row of `WEIGHTS` in `direction.py`.
    """

    train: Probe
    query: Probe
    unit: bool = False
    over: str = "all"
    weight: str = "one"

    def __post_init__(self) -> None:
        for probe in (self.train, self.query):
            _one_of("trajectory", probe.trajectory, TRAJECTORIES)
            _one_of("direction", probe.direction, DIRECTIONS)
            if probe.direction == "caption_fit" and probe.trajectory == "sampling":
                raise ValueError(
                    "caption_fit compares a state's noise with the captions' predictions, and sampling has no noise; "
                    "choose forward_noise or ddim_inversion, or the direction caption_reward"
                )
        _one_of("weight", self.weight, WEIGHTS)
        _one_of("over", self.over, ("all", "layer"))
        if self.train.trajectory == "sampling" or self.train.direction in CONCEPT_DIRECTIONS:
            raise ValueError(
                "the train side stands on its own images and captions: choose forward_noise or ddim_inversion, and a "
                "direction that needs no concept"
            )


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known; expected one of: {', '.join(known)}")


def _both(probe: Probe, weight: str = "one") -> Method:
    """A whole-image row: the same probe on both sides."""
    return Method(probe, probe, weight=weight)


def method_settings(method: Method) -> dict[str, Any]:
    """The row as plain values, for configurations and fingerprints."""
    return asdict(method)


_trak = _both(Probe("forward_noise", "denoising_error"))
_d_trak = _both(Probe("forward_noise", "prediction"))
_das = _both(Probe("forward_noise", "prediction_sign"), weight="squared_error")
# Concept-TRAK as the paper's ablation builds it: each row changes one thing in the row before.
_concept_a = replace(_trak, query=Probe("sampling", "concept_reward"))
_concept_b = replace(_concept_a, train=Probe("forward_noise", "reconstruction_reward"))
_concept_c = replace(_concept_b, train=Probe("ddim_inversion", "reconstruction_reward", guidance=7.5))
_concept_trak = replace(_concept_c, unit=True)
_caption_trak = replace(_concept_trak, train=Probe("forward_noise", "caption_reward"))
# Less than a tenth of concept_trak's evaluations; a picture counts only as far as it shows what its caption says, and
# every layer as much as any other. Its two times and its norm were chosen on two small models (assets/results.md).
_fit_trak = replace(
    _caption_trak, train=Probe("forward_noise", "caption_fit", times=(300, 700), negatives=3), over="layer"
)
METHODS: dict[str, Method] = {
    "trak": _trak,
    "d_trak": _d_trak,
    "das": _das,
    "concept_a": _concept_a,
    "concept_b": _concept_b,
    "concept_c": _concept_c,
    "concept_trak": _concept_trak,
    "caption_trak": _caption_trak,
    "fit_trak": _fit_trak,
}
PUBLISHED = "concept_trak"
"""The default, as its paper has it."""
RECOMMENDED = "fit_trak"
"""What `method=recommended` means: in the worst cell ahead of every baseline on `shapes2` and `shapes3`, in each of
three models, and on average of caption lookup where a fifth of the captions is wrong (assets/results.md)."""
