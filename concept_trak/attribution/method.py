"""Methods as rows of a table: states and direction of each side, unit norm, weight. A new method is a new row."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from concept_trak import UserError
from concept_trak.attribution.direction import DIRECTIONS, WEIGHTS
from concept_trak.attribution.state import Probe
from concept_trak.attribution.trajectory import TRAJECTORIES

CONCEPT_DIRECTIONS = ("concept_reward", "example_reward", "classifier_reward")
"""Directions that need a concept, so that only a query has them."""


class FeatureSpec(NamedTuple):
    """The settings of the features of one side of a method.

    Attributes:
        probe: the states, and the direction at each.
        unit: whether the gradient of each state is divided by its norm.
        weight: a row of `direction.WEIGHTS`.
        over: what the norm runs over: `all` parameters, or each `layer`'s by itself.
        exponent: with `layer`, the exponent of the layer's own norm (`Method`).
    """

    probe: Probe
    unit: bool = False
    weight: str = "one"
    over: str = "all"
    exponent: float = 1.0

    @property
    def norm(self) -> str:
        """`none`, `all` or `layer`."""
        return self.over if self.unit else "none"


@dataclass(frozen=True)
class Method:
    """How training samples and queries become features, and how a finished score is weighted.

    Args:
        train: states and direction of a training sample.
        query: states and direction of a concept's samples.
        unit: whether the gradient of each state is divided by its Euclidean norm, on both sides.
        over: what the norm runs over: `all` attributable parameters, or each `layer`'s by itself, so that no few
            layers decide.
        exponent: p in (0, 1], for `over="layer"`. The gradient g_l of a layer is divided by |g_l|^p |g|^(1-p), where g
            is the gradient of all layers. p = 1 divides by the layer's own norm; as p goes to 0, every layer is divided
            by |g|. In between, layers with large gradients count more: with p = 1/2, as the square root of their norm.
        weight: a row of `direction.WEIGHTS`: `one` or `squared_error`.

    Raises:
        UserError: a trajectory, direction, weight or norm is not known, or the two do not go together.

    Examples:
        >>> from dataclasses import replace
        >>> import concept_trak as ct
        >>> without_norm = replace(ct.METHODS["concept_trak"], unit=False)
        >>> without_norm.train.direction
        'reconstruction_reward'
    """

    train: Probe
    query: Probe
    unit: bool = False
    over: str = "all"
    weight: str = "one"
    exponent: float = 1.0

    def __post_init__(self) -> None:
        for probe in (self.train, self.query):
            _require_one_of("trajectory", probe.trajectory, TRAJECTORIES)
            _require_one_of("direction", probe.direction, DIRECTIONS)
            if probe.direction == "caption_fit" and probe.trajectory == "sampling":
                raise UserError(
                    "caption_fit compares a state's noise with the captions' predictions, and sampling has no noise; "
                    "choose forward_noise or ddim_inversion, or the direction caption_reward"
                )
        _require_one_of("weight", self.weight, WEIGHTS)
        _require_one_of("over", self.over, ("all", "layer"))
        if not 0 < self.exponent <= 1:
            raise UserError(f"exponent={self.exponent}: expected a number in (0, 1]; with over=all there is one norm")
        if self.exponent != 1 and not (self.unit and self.over == "layer"):
            raise UserError(f"exponent={self.exponent} is of the layers' norms: set unit=true and over=layer")
        if self.train.trajectory == "sampling" or self.train.direction in CONCEPT_DIRECTIONS:
            raise UserError(
                "the train side starts from the sample's own image and caption: choose forward_noise or "
                "ddim_inversion, and a direction that needs no concept"
            )

    @property
    def train_spec(self) -> FeatureSpec:
        """The settings of the features of training samples."""
        return FeatureSpec(self.train, self.unit, self.weight, self.over, self.exponent)

    @property
    def query_spec(self) -> FeatureSpec:
        """The settings of the features of queries, which have no weight."""
        return FeatureSpec(self.query, self.unit, over=self.over, exponent=self.exponent)


def _require_one_of(name: str, value: str, values: Collection[str]) -> None:
    if value not in values:
        raise UserError(f"{name}={value!r} is not known; expected one of: {', '.join(values)}")


def method_settings(method: Method) -> dict[str, Any]:
    """The row as plain values, for configurations and fingerprints."""
    return asdict(method)


def norm_settings(method: Method) -> dict[str, Any]:
    """Of these the norm's; the exponent only where it is not 1, as in fingerprints from before there was one."""
    return {"unit": method.unit, "over": method.over} | ({} if method.exponent == 1 else {"exponent": method.exponent})


def _whole_image(probe: Probe, weight: str = "one") -> Method:
    """A row with the same probe on both sides: it attributes images as a whole, not a concept in them."""
    return Method(probe, probe, weight=weight)


_trak = _whole_image(Probe("forward_noise", "denoising_error"))
_d_trak = _whole_image(Probe("forward_noise", "prediction"))
_das = _whole_image(Probe("forward_noise", "prediction_sign"), weight="squared_error")
# The ablation of Concept-TRAK's paper: each row changes one thing in the row before it.
_concept_a = replace(_trak, query=Probe("sampling", "concept_reward"))
_concept_b = replace(_concept_a, train=Probe("forward_noise", "reconstruction_reward"))
_concept_c = replace(_concept_b, train=Probe("ddim_inversion", "reconstruction_reward", guidance=7.5))
_concept_trak = replace(_concept_c, unit=True)
_caption_trak = replace(_concept_trak, train=Probe("forward_noise", "caption_reward"))
# It needs less than a tenth of the evaluations of concept_trak. An image is weighted by how far it shows its caption,
# and every layer has the same weight. Its two times and its norm were chosen on two small models (assets/results.md).
_fit_trak = replace(
    _caption_trak, train=Probe("forward_noise", "caption_fit", times=(300, 700), negatives=3), over="layer"
)
# With damping=auto within .03 of the best row that ran on each of four data sets and where captions are wrong, which no
# other row is, at 4.5 times the cost of fit_trak: nine states, the tempered norm, and a wider doubt, because weak
# models fail at .25 (assets/study.md).
_tempered_trak = replace(
    _caption_trak,
    train=Probe("forward_noise", "caption_fit", negatives=3, doubt=1.0),
    over="layer",
    exponent=0.5,
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
    "tempered_trak": _tempered_trak,
}
"""The rows by name; docs/methods.md compares them."""
PUBLISHED = "concept_trak"
"""The default row, with the settings of its paper."""
RECOMMENDED = "fit_trak"
"""The row that `method=recommended` selects: in the worst cell ahead of every baseline on `shapes2` and `shapes3`, in
each of three models, and on average of caption lookup where a fifth of the captions is wrong (assets/results.md)."""
