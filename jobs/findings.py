"""The page of an inquiry into components, from the tables and sheets that stand in the store."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from concept_trak.accrual import Case, Concluded, Inquest
from concept_trak.calibration import pearson
from concept_trak.contact import sheet_file, strips
from concept_trak.data.two_factors import caption
from concept_trak.dose import ARMS
from concept_trak.gate import known_to
from concept_trak.joint import block_of
from concept_trak.report.inquiry import Arm, Holder, Inquiry, Layer, Look, Row, Trial, render_inquiry
from concept_trak.store.commit import Store
from concept_trak.store.tables import read_parquet
from jobs.inquiry import ComponentsConfig

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
