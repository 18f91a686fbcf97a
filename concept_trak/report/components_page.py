"""The page of a components run: the layers that hold a concept, and what the model draws when they are changed.

`components.html` has the structure and the words. This module reads the values from the store and computes the geometry
of the drawings, in percent of their box from its top left corner.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from concept_trak.attribution.by_layer import block_of
from concept_trak.components.calibration import pearson
from concept_trak.components.config import ComponentsConfig
from concept_trak.components.dose_response import CRITERIA, contact_sheet_file, sheet_rows
from concept_trak.components.workers import ComponentsSettings, MeasuredConcept, SummaryResult
from concept_trak.data.benchmarks.two_factors import pair_caption
from concept_trak.evaluation.judge import judged_set
from concept_trak.report.chart import HUES, Chart, Curve, Dot, spread_apart
from concept_trak.report.render import environment
from concept_trak.store.store import Store
from concept_trak.store.tables import read_rows_of

STRONGEST = 16
"""Tensors that are drawn."""
LABEL_GAP = 9.0
"""Percent of a chart's height that the name of a curve takes."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Layer:
    """A tensor, or all tensors of a block: the sum of its alphas, and the standard error over trajectories if known."""

    name: str
    parameters: int
    alpha: float
    error: float | None = None


@dataclass(frozen=True)
class PresenceCurve:
    """One value of one factor ("red"): its mean presence, in [0, 1], at every dose.

    `target`: the value is the concept's own. `same_factor`: it belongs to the concept's factor.
    """

    value: str
    presence: tuple[float, ...]
    target: bool
    same_factor: bool


@dataclass(frozen=True)
class DoseResponse:
    """One way to choose the parameters of an edit. The first dose is no edit; `edited` counts parameters at each."""

    name: str
    ratios: tuple[float, ...]
    edited: tuple[int, ...]
    curves: tuple[PresenceCurve, ...]


@dataclass(frozen=True)
class PictureRow:
    """One prompt with a strip of pictures (PNG) for each column, the first without an edit.

    `target`: the prompt names the concept.
    """

    caption: str
    target: bool
    strips: tuple[bytes, ...]


@dataclass(frozen=True)
class RandomAblation:
    """The change of J by one random ablation: predicted by alpha, and actual with a fixed or a recomputed reference."""

    fraction: float
    predicted: float
    frozen: float
    recomputed: float


@dataclass(frozen=True)
class ConceptSection:
    """One concept. `prompts`: each with the same prompt without the concept. `pearson`: by kind (`frozen`,
    `recomputed`), then by fraction, "all" last."""

    name: str
    prompts: tuple[tuple[str, str], ...]
    j: float
    moves: float
    trajectories: int
    states: int
    tensors: tuple[Layer, ...]
    blocks: tuple[Layer, ...]
    responses: tuple[DoseResponse, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[PictureRow, ...] = ()
    ablations: tuple[RandomAblation, ...] = ()
    pearson: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ComponentsPage:
    """A whole run. `chosen`: how parameters are chosen, in words."""

    name: str
    model: str
    objective: str
    parameters: int
    chosen: str
    sections: tuple[ConceptSection, ...]


def render_components(page: ComponentsPage) -> str:
    """The page as a complete HTML document; all text is escaped. Equal pages give equal text."""
    return _TEMPLATE.render(page=page)


def alpha_bar(layer: Layer, layers: Sequence[Layer]) -> dict[str, float]:
    """Left end and width of a layer's bar, and both ends of its error, on an axis that all `layers` share."""
    reach = max((abs(other.alpha) + (other.error or 0) for other in layers), default=0.0) or 1.0
    tip, spread = 50 + 50 * layer.alpha / reach, 50 * (layer.error or 0) / reach
    ends = {"x": min(50.0, tip), "width": abs(tip - 50), "low": tip - spread, "high": tip + spread}
    return {key: round(value, 3) for key, value in ends.items()}


def dose_chart(response: DoseResponse) -> Chart:
    """Presence against dose: doses at equal distances, presence 1 at the top, the concept's own curve drawn last."""
    last = max(1, len(response.edited) - 1)
    x = [round(100 * i / last, 3) for i in range(len(response.edited))]
    ordered = sorted(response.curves, key=lambda curve: not curve.target)
    labels = spread_apart([100 * (1 - curve.presence[-1]) for curve in ordered], LABEL_GAP)
    others = [curve.value for curve in response.curves if not curve.target]
    curves = tuple(
        _presence_curve(curve, x, label, hue=0 if curve.target else 1 + others.index(curve.value) % (HUES - 1))
        for curve, label in zip(ordered, labels, strict=True)
    )
    presences = tuple((value, 100 * (1 - value)) for value in (0.0, 0.5, 1.0))
    return Chart(curves, tuple(zip(map(float, response.edited), x, strict=True)), presences, height=220)


def _presence_curve(curve: PresenceCurve, x: Sequence[float], label: float, hue: int) -> Curve:
    y = [round(100 * (1 - presence), 3) for presence in curve.presence]
    titles = [f"{curve.value}: {presence:.3f}" for presence in curve.presence]
    return Curve(
        name=f"{curve.value} {curve.presence[-1]:.3f}",
        hue=hue,
        points=tuple(zip(x, y, strict=True)),
        dots=tuple(map(Dot, x, y, titles)),
        label=label,
        lead=curve.target,
        dashed=not curve.same_factor,
    )


def cloud(ablations: Sequence[RandomAblation], kind: str) -> list[tuple[float, float, int]]:
    """Predicted change to the right and actual change (`frozen` or `recomputed`) up, each axis over its own reach about
    0, with the number of the fraction: (x, y, number)."""
    fractions = sorted({a.fraction for a in ablations})
    x, y = reach(ablations, "predicted"), reach(ablations, kind)
    return [
        (round(50 + 48 * a.predicted / x, 2), round(50 - 48 * getattr(a, kind) / y, 2), fractions.index(a.fraction))
        for a in ablations
    ]


def reach(ablations: Sequence[RandomAblation], kind: str) -> float:
    """The largest size of one of their numbers; 1 if all are 0."""
    return max((abs(getattr(a, kind)) for a in ablations), default=0.0) or 1.0


_ENVIRONMENT = environment()
_ENVIRONMENT.filters.update({f.__name__: f for f in (alpha_bar, dose_chart, cloud, reach)})
_TEMPLATE = _ENVIRONMENT.get_template("components.html")


def publish_components(
    config: ComponentsConfig, settings: ComponentsSettings, summaries: Sequence[tuple[MeasuredConcept, SummaryResult]]
) -> str:
    """Writes `components/<name>/report.html` about the tables of this run; returns its name in the store."""
    store, base = Store(config.store), f"components/{config.name}"
    doses = read_rows_of(store, f"{base}/components_doses.parquet") if config.doses else []
    ablations = read_rows_of(store, f"{base}/components_calibration.parquet") if config.calibration.ablations else []
    sections = tuple(
        _section(store, settings, measured, summary, _of(doses, summary), _of(ablations, summary))
        for measured, summary in summaries
    )
    choice, factor = config.edit.choice, config.edit.factor
    goal = "for more of it" if choice.wants_more(config.objective) else "for less of it"
    page = ComponentsPage(
        name=config.name,
        model=config.model.path,
        objective=config.objective,
        parameters=sum(layer.parameters for layer in sections[0].blocks),
        chosen=f"{choice.by}, {choice.granularity}, {goal}, against {choice.against}, times {factor:g}",
        sections=sections,
    )
    store.replace(f"{base}/report.html", render_components(page).encode())
    return f"{base}/report.html"


def _section(
    store: Store,
    settings: ComponentsSettings,
    measured: MeasuredConcept,
    summary: SummaryResult,
    doses: Rows,
    ablations: Rows,
) -> ConceptSection:
    groups = read_rows_of(store, settings.table("components_groups", measured.concept))
    tensors = [row for row in groups if row["granularity"] == "tensor"]
    strongest = sorted(tensors, key=lambda row: -abs(row["alpha"]))[:STRONGEST]
    target = frozenset(measured.concept.truth.values())
    columns, rows = pictures_of(store, settings, doses, target)
    fields = ("fraction", "predicted", "frozen", "recomputed")
    drawn = tuple(RandomAblation(**{key: row[key] for key in fields}) for row in ablations)
    return ConceptSection(
        name=summary.concept,
        prompts=tuple(dict.fromkeys((unit.concept.text, unit.concept.without) for unit in measured.units)),
        j=summary.j,
        moves=summary.expressed,
        trajectories=tensors[0]["seeds"],
        states=tensors[0]["states"],
        tensors=tuple(Layer(r["tensor"], r["parameters"], r["alpha"], r["se_seeds"]) for r in strongest),
        blocks=blocks_of(tensors),
        responses=responses_of(doses, target),
        columns=columns,
        rows=rows,
        ablations=drawn,
        pearson=correlations(drawn),
    )


def blocks_of(tensors: Rows) -> tuple[Layer, ...]:
    """The sums of the tensors over each part of the network, in the model's order."""
    total: dict[str, Layer] = {}
    for row in tensors:
        name = block_of(row["tensor"])
        before = total.get(name, Layer(name, 0, 0.0))
        total[name] = Layer(name, before.parameters + row["parameters"], before.alpha + row["alpha"])
    return tuple(total.values())


def responses_of(doses: Rows, target: frozenset[str]) -> tuple[DoseResponse, ...]:
    """The response for every way to choose parameters, doses in rising order after the one without an edit."""
    factors = {row["of"] for row in doses if row["value"] in target}
    return tuple(
        _response(name, doses, target, factors) for name in CRITERIA if any(row["criterion"] == name for row in doses)
    )


def _response(name: str, doses: Rows, target: frozenset[str], factors: set[str]) -> DoseResponse:
    unedited, own = ([row for row in doses if row["criterion"] == criterion] for criterion in ("none", name))
    ratios = sorted({row["ratio"] for row in own})
    columns = [unedited, *([row for row in own if row["ratio"] == ratio] for ratio in ratios)]
    by_value = [{row["value"]: row["presence"] for row in column} for column in columns]
    curves = tuple(
        PresenceCurve(
            value=row["value"],
            presence=tuple(presence[row["value"]] for presence in by_value),
            target=row["value"] in target,
            same_factor=row["of"] in factors,
        )
        for row in unedited
    )
    return DoseResponse(name, (0.0, *ratios), tuple(column[0]["edited"] for column in columns), curves)


def pictures_of(
    store: Store, settings: ComponentsSettings, doses: Rows, target: frozenset[str]
) -> tuple[tuple[str, ...], tuple[PictureRow, ...]]:
    """Pictures without an edit and at every dose of alpha: the names of the columns, and a row for each pair."""
    if not doses:
        return (), ()
    pairs, concept = judged_set(settings.model.path).all_pairs, doses[0]["concept"]
    edited = {row["ratio"]: row["edited"] for row in doses if row["criterion"] == "alpha"}
    files = [("none", 0.0), *(("alpha", ratio) for ratio in sorted(edited))]
    sheets = [sheet_rows(store.read(contact_sheet_file(settings.name, concept, *file)), len(pairs)) for file in files]
    columns = ("unchanged", *(f"{edited[ratio]:,} changed" for ratio in sorted(edited)))
    rows = zip(pairs, *sheets, strict=True)
    return columns, tuple(PictureRow(pair_caption(*pair), bool(target & set(pair)), tuple(row)) for pair, *row in rows)


def correlations(ablations: Sequence[RandomAblation]) -> dict[str, dict[str, float]]:
    """Pearson of predicted and actual change: by `frozen` and `recomputed`, then by fraction, that of all last."""
    fractions = sorted({a.fraction for a in ablations})
    groups = {f"{fraction:g}": [a for a in ablations if a.fraction == fraction] for fraction in fractions}
    groups["all"] = list(ablations)
    return {
        kind: {name: pearson([a.predicted for a in group], [getattr(a, kind) for a in group])
               for name, group in groups.items()}
        for kind in ("frozen", "recomputed")
    }  # fmt: skip


def _of(rows: Iterable[Mapping[str, Any]], summary: SummaryResult) -> Rows:
    return [dict(row) for row in rows if row["concept"] == summary.concept and row.get("of") != "pair"]
