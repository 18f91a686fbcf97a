"""The page of an inquiry into components: which layers hold a concept, and what is drawn once they are changed.

`inquiry.html` holds structure and words. Here is what it needs computed: the geometry of the drawings, in percent of
their box from top left, so that they fit any screen and their words keep their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from concept_trak.report.render import environment

HUES = 6  # of values that are told apart by colour; the concept's own stands out by the accent


@dataclass(frozen=True)
class Layer:
    """A tensor, or all tensors of a block: the sum of its alphas, and the standard error over trajectories if known."""

    name: str
    parameters: int
    alpha: float
    error: float | None = None


@dataclass(frozen=True)
class Look:
    """One value of one factor ("red") at every dose: its mean presence, in [0, 1], in the doses' order.

    `target`: the concept asked about; `same`: another value of its factor.
    """

    value: str
    presence: tuple[float, ...]
    target: bool
    same: bool


@dataclass(frozen=True)
class Arm:
    """One way to choose what is changed. The first dose is none; `edited` counts parameters at each."""

    name: str
    ratios: tuple[float, ...]
    edited: tuple[int, ...]
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Row:
    """One prompt: a strip of pictures (PNG) for each column, the first without an edit; `target`: it names the
    concept."""

    caption: str
    target: bool
    strips: tuple[bytes, ...]


@dataclass(frozen=True)
class Trial:
    """One random ablation: what alpha predicts of J, and what came, with the reference held and recomputed."""

    fraction: float
    predicted: float
    frozen: float
    recomputed: float


@dataclass(frozen=True)
class Holder:
    """One concept. `asked` are its prompts, each with the same without it; `pearson` by what, then by fraction ("all"
    last)."""

    name: str
    asked: tuple[tuple[str, str], ...]
    j: float
    moves: float
    trajectories: int
    states: int
    layers: tuple[Layer, ...]
    blocks: tuple[Layer, ...]
    arms: tuple[Arm, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    trials: tuple[Trial, ...] = ()
    pearson: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inquiry:
    """A whole inquiry. `chosen`: how parameters are chosen, in words."""

    name: str
    model: str
    objective: str
    parameters: int
    chosen: str
    holders: tuple[Holder, ...]


def render_inquiry(page: Inquiry) -> str:
    """The page as a complete HTML document; all text is escaped. Equal inquiries, equal text."""
    return _TEMPLATE.render(page=page, hues=range(HUES))


def bar(layer: Layer, among: Sequence[Layer]) -> dict[str, float]:
    """Where a layer's bar begins and how wide it is, and the ends of its error, for an axis that all share."""
    reach = max((abs(one.alpha) + (one.error or 0) for one in among), default=0.0) or 1.0
    start, end = sorted((50.0, 50 + 50 * layer.alpha / reach))
    spread = 50 * (layer.error or 0) / reach
    tip = 50 + 50 * layer.alpha / reach
    return {key: round(v, 3) for key, v in (("x", start), ("width", end - start), ("a", tip - spread),
            ("b", tip + spread))}  # fmt: skip


def hue(look: Look, arm: Arm) -> str:
    """The class of a curve: the concept's own, a hue of its factor, or one of the other factor, dashed."""
    if look.target:
        return "lead"
    place = [one.value for one in arm.looks if not one.target].index(look.value)
    return f"hue{place % HUES}{'' if look.same else ' dashed'}"


def curve(look: Look) -> list[tuple[float, float]]:
    """Its points; doses stand at equal distances, presence 1 at the top."""
    last = max(1, len(look.presence) - 1)
    return [(round(100 * i / last, 3), round(100 * (1 - p), 3)) for i, p in enumerate(look.presence)]


def labels(arm: Arm, room: float = 9.0) -> dict[str, float]:
    """Where the name of each curve stands, at least `room` percent apart, as near to its end as that allows."""
    ordered = sorted(arm.looks, key=lambda look: -look.presence[-1])
    places, least = dict[str, float](), 0.0
    for i, look in enumerate(ordered):
        most = 100 - room * (len(ordered) - 1 - i)
        places[look.value] = least = min(max(100 * (1 - look.presence[-1]), least), max(most, least))
        least += room
    return places


def cloud(trials: Sequence[Trial], what: str) -> list[tuple[float, float, int]]:
    """Where each trial stands, predicted across and actual up, each axis over its own reach about 0; the number of its
    fraction."""
    fractions = sorted({t.fraction for t in trials})
    x, y = reach(trials, "predicted"), reach(trials, what)
    return [
        (round(50 + 48 * t.predicted / x, 2), round(50 - 48 * getattr(t, what) / y, 2), fractions.index(t.fraction))
        for t in trials
    ]


def reach(trials: Sequence[Trial], what: str) -> float:
    """The largest size of one of their numbers; 1 where all are 0."""
    return max((abs(getattr(t, what)) for t in trials), default=0.0) or 1.0


def _environment():
    made = environment()
    made.filters.update({f.__name__: f for f in (bar, hue, curve, labels, cloud, reach)})
    return made


_TEMPLATE = _environment().get_template("inquiry.html")
