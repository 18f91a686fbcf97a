"""The page of an inquiry into components: which layers hold a concept, and what is drawn once they are changed.

`inquiry.html` holds structure and words. Here is what it needs computed: the geometry of the drawings, in percent of
their box from top left, so that they fit any screen and their words keep their size.

The page of an inquiry into components, from the tables and sheets that stand in the store.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from concept_trak.attribution.by_layer import block_of
from concept_trak.components.calibration import pearson
from concept_trak.components.config import ComponentsConfig
from concept_trak.components.dose_response import ARMS, sheet_file, strips
from concept_trak.components.workers import Case, Concluded, Inquest
from concept_trak.data.benchmarks.two_factors import caption
from concept_trak.evaluation.judge import known_to
from concept_trak.report.render import environment
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet

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
Rows = list[dict[str, Any]]
STRONGEST = 16  # tensors that are drawn


def publish(config: ComponentsConfig, inquest: Inquest, found: Sequence[tuple[Case, Concluded]]) -> str:
    """Write `components/<name>/report.html` about what this run made; its name in the store."""
    store, base = Store(config.store), f"components/{config.name}"
    doses = _table(store, f"{base}/components_doses.parquet") if config.doses else []
    trials = _table(store, f"{base}/components_calibration.parquet") if config.calibration.ablations else []
    holders = tuple(_holder(store, inquest, case, said, _of(doses, said), _of(trials, said)) for case, said in found)
    e, parameters = config.edit, sum(layer.parameters for layer in holders[0].blocks)
    c, goal = e.choice, "for more of it" if e.choice.wants_more(config.objective) else "for less of it"
    chosen = f"{c.by}, {c.granularity}, {goal}, against {c.against}, times {e.factor:g}"
    page = Inquiry(config.name, config.model.path, config.objective, parameters, chosen, holders)
    store.replace(f"{base}/report.html", render_inquiry(page).encode())
    return f"{base}/report.html"


def _holder(store: Store, inquest: Inquest, case: Case, said: Concluded, doses: Rows, trials: Rows) -> Holder:
    groups = _table(store, inquest.table("components_groups", case.concept))
    tensors = [row for row in groups if row["granularity"] == "tensor"]
    asked = tuple(dict.fromkeys((u.concept.text, u.concept.without) for u in case.units))
    ordered = sorted(tensors, key=lambda row: -abs(row["alpha"]))
    first = tuple(Layer(r["tensor"], r["parameters"], r["alpha"], r["se_seeds"]) for r in ordered[:STRONGEST])
    counts = (tensors[0]["seeds"], tensors[0]["states"])
    blocks, target = blocks_of(tensors), frozenset(case.concept.truth.values())
    arms, (columns, rows) = arms_of(doses, target), pictures_of(store, inquest, doses, target)
    tried = tuple(Trial(*(row[key] for key in ("fraction", "predicted", "frozen", "recomputed"))) for row in trials)
    return Holder(said.concept, asked, said.j, said.expressed, *counts, first, blocks, arms, columns, rows, tried,
                  correlations(tried))  # fmt: skip


def blocks_of(tensors: Rows) -> tuple[Layer, ...]:
    """Tensors added up by the part of the network that they lie in, in the model's order."""
    total: dict[str, Layer] = {}
    for row in tensors:
        name = block_of(row["tensor"])
        before = total.get(name, Layer(name, 0, 0.0))
        total[name] = Layer(name, before.parameters + row["parameters"], before.alpha + row["alpha"])
    return tuple(total.values())


def arms_of(doses: Rows, target: frozenset[str]) -> tuple[Arm, ...]:
    """Every arm's doses in rising order, after the one without an edit."""
    if not doses:
        return ()
    factor = {row["of"] for row in doses if row["value"] in target}

    def arm(name: str) -> Arm:
        own = [row for row in doses if row["arm"] == name]
        ratios = sorted({row["ratio"] for row in own})
        columns = [
            [row for row in doses if row["arm"] == "none"],
            *([r for r in own if r["ratio"] == x] for x in ratios),
        ]
        by_value = [{row["value"]: row["presence"] for row in column} for column in columns]
        looks = tuple(
            Look(
                row["value"],
                tuple(seen[row["value"]] for seen in by_value),
                row["value"] in target,
                row["of"] in factor,
            )
            for row in columns[0]
        )
        return Arm(name, (0.0, *ratios), tuple(column[0]["edited"] for column in columns), looks)

    return tuple(arm(name) for name in ARMS if any(row["arm"] == name for row in doses))


def pictures_of(
    store: Store, inquest: Inquest, doses: Rows, target: frozenset[str]
) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """What was drawn without an edit and at every dose of alpha: the columns, and a row for each pair."""
    if not doses:
        return (), ()
    pairs, concept = known_to(inquest.config.model.path).all_pairs, doses[0]["concept"]
    edited = {row["ratio"]: row["edited"] for row in doses if row["arm"] == "alpha"}
    files = [("none", 0.0), *(("alpha", ratio) for ratio in sorted(edited))]
    sheets = [strips(store.read(sheet_file(inquest.name, concept, *file)), len(pairs)) for file in files]
    columns = ("as it is", *(f"{edited[ratio]:,} changed" for ratio in sorted(edited)))
    rows = zip(pairs, *sheets, strict=True)
    return columns, tuple(Row(caption(*pair), bool(target & set(pair)), tuple(seen)) for pair, *seen in rows)


def correlations(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Pearson of predicted and actual, by what was held, then by fraction; of all last."""
    shares = {f"{f:g}": [t for t in trials if t.fraction == f] for f in sorted({t.fraction for t in trials})}
    return {
        what: {share: pearson([t.predicted for t in some], [getattr(t, what) for t in some])
               for share, some in {**shares, "all": trials}.items()}
        for what in ("frozen", "recomputed")
    }  # fmt: skip


def _table(store: Store, name: str) -> Rows:
    return read_parquet(store.read(name)).to_pylist()


def _of(rows: Iterable[Mapping[str, Any]], said: Concluded) -> Rows:
    return [dict(row) for row in rows if row["concept"] == said.concept and row.get("of") != "pair"]
