"""The results of a causal test as Parquet, Markdown and a page. Every retraining is shown."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from concept_trak.evaluation.counterfactual import Effect, Removal
from concept_trak.evaluation.training.settings import TrainConfig
from concept_trak.report.benchmark_page import cell_words, share_text, signed_text
from concept_trak.report.table_page import TablePage, TextTable, as_markdown, render_tables
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

KINDS = {"set": "string", "arm": "string", "concept": "string", "share": "float64", "carriers": "int64",
         "removed": "int64", "seed": "int64", "moved": "float64", "lost": "float64", "moved_target": "float64",
         "moved_other": "float64", "present": "float64", "present_control": "float64", "kept_other": "float64",
         "kept_other_control": "float64"}  # fmt: skip
MEANS = ("arm", "share", "retrainings", "moved", "less random's", "least to greatest", "lost", "less random's",
         "least to greatest", "others kept")  # fmt: skip
ALL = ("arm", "concept", "share", "removed", "carriers", "seed", "moved: targets", "others", "difference", "present",
       "in the control", "lost", "others kept", "in the control")  # fmt: skip
READING = (
    ("removed", "how many training images were left out: the first of the arm's ranking, as a share of the images that "
     "show the concept"),
    ("moved", "Euclidean distance between pictures of the retrained model and of its control from the same noise: the "
     "mean over the prompts that name the concept less the mean over the others"),
    ("lost", "presence of the concept in the control's pictures of the prompts that name it, less its presence in the "
     "retrained model's, as the data set's classifier sees it"),
    ("others kept", "how often the other prompts still show the other value that they name"),
    ("control", "trained on everything from the same seed: the same first weights, and the same batches except where "
     "images were left out"),
    ("random", "as many images left out at random: the effect of any removal of that size"),
    ("less random's", "means of the differences to the random removal of the same concept, size and seed, and the "
     "least and the greatest of them"),
)  # fmt: skip
Line = tuple[Removal, Effect]


def publish_counterfactual(store: Store, name: str, training: TrainConfig, lines: Sequence[Line]) -> str:
    """Writes counterfactual.parquet, .md and .html below benchmarks/<name>/; returns the Markdown."""
    page = counterfactual_page(training, lines)
    files = {
        "counterfactual.parquet": to_parquet(from_rows(KINDS, [_row(training, *line) for line in lines])),
        "counterfactual.md": as_markdown(page).encode(),
        "counterfactual.html": render_tables(page).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)
    return as_markdown(page)


def _row(training: TrainConfig, case: Removal, effect: Effect) -> dict[str, Any]:
    removed = {"removed": len(case.retraining.without), "seed": case.retraining.seed}
    key = {"arm": case.arm, "concept": case.cell.name, "share": case.share, "carriers": case.carriers}
    return {"set": training.set, **key, **removed, "moved": effect.moved, "lost": effect.lost, **asdict(effect)}


def counterfactual_page(training: TrainConfig, lines: Sequence[Line]) -> TablePage:
    """The means of every arm and share, then every retraining."""
    return TablePage(
        title="What is lost with the images",
        lead=f"Models of {training.set} trained from scratch without the images that a ranking puts first.",
        tables=(_means(lines), _all(lines)),
        reading=READING,
    )


def _means(lines: Sequence[Line]) -> TextTable:
    groups: dict[tuple[str, float], list[Line]] = {}
    for case, effect in lines:
        groups.setdefault((case.arm, case.share), []).append((case, effect))
    rows = tuple(_mean_row(arm, share, group, lines) for (arm, share), group in groups.items())
    return TextTable("Means", "Over concepts and seeds.", MEANS, rows)


def _mean_row(arm: str, share: float, group: Sequence[Line], lines: Sequence[Line]) -> tuple[str, ...]:
    at_random = {_pairing(case): effect for case, effect in lines if case.arm == "random"}
    pairs = [(effect, at_random[_pairing(case)]) for case, effect in group if _pairing(case) in at_random]
    columns: list[str] = []
    for measure in ("moved", "lost"):
        columns.append(signed_text(fmean(getattr(effect, measure) for _, effect in group), 2))
        columns += _differences([getattr(own, measure) - getattr(random, measure) for own, random in pairs])
    return (arm, f"{share:g}", str(len(group)), *columns, share_text(fmean(e.kept_other for _, e in group)))


def _differences(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "–", "–"
    return signed_text(fmean(values), 2), f"{signed_text(min(values), 2)} to {signed_text(max(values), 2)}"


def _pairing(case: Removal) -> tuple[str, float, int]:
    return (case.cell.name, case.share, case.retraining.seed)


def _all(lines: Sequence[Line]) -> TextTable:
    rows = tuple(_line(*line) for line in lines)
    return TextTable("Every retraining", "One line for each arm, concept, share and seed.", ALL, rows)


def _line(case: Removal, e: Effect) -> tuple[str, ...]:
    return (
        case.arm,
        cell_words(case.cell),
        f"{case.share:g}",
        str(len(case.retraining.without)),
        str(case.carriers),
        str(case.retraining.seed),
        f"{e.moved_target:.2f}",
        f"{e.moved_other:.2f}",
        signed_text(e.moved, 2),
        share_text(e.present),
        share_text(e.present_control),
        signed_text(e.lost, 2),
        share_text(e.kept_other),
        share_text(e.kept_other_control),
    )
