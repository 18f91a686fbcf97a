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

KINDS = {"set": "string", "ranker": "string", "concept": "string", "share": "float64", "carriers": "int64",
         "removed": "int64", "seed": "int64", "moved": "float64", "lost": "float64", "moved_target": "float64",
         "moved_other": "float64", "present": "float64", "present_control": "float64", "kept_other": "float64",
         "kept_other_control": "float64"}  # fmt: skip
MEANS = ("ranking", "share", "retrainings", "moved", "less random's", "least to greatest", "lost", "less random's",
         "least to greatest", "others kept")  # fmt: skip
ALL = ("ranking", "concept", "share", "removed", "carriers", "seed", "moved: targets", "moved: others", "moved",
       "present", "present: control", "lost", "others kept", "others kept: control")  # fmt: skip
READING = (
    ("carriers, targets", "the training images that show the concept; the prompts that name it"),
    ("removed", "how many training images were left out: the first of the ranking, as a share of the images that "
     "show the concept"),
    ("moved", "Euclidean distance between pictures of the retrained model and of its control from the same noise: the "
     "mean over the prompts that name the concept minus the mean over the others"),
    ("present", "the mean probability that a picture of a target shows the concept, by the data set's classifier"),
    ("lost", "presence of the concept in the control's pictures of the prompts that name it, minus its presence in the "
     "retrained model's, by the data set's classifier"),
    ("others kept", "how often pictures of the other prompts still show the value that those prompts name"),
    ("control", "trained on everything from the same seed: the same first weights, and the same batches except where "
     "images were left out"),
    ("random", "as many images left out at random: the effect of any removal of that size"),
    ("less random's", "mean difference to the random removal of the same concept, size and seed; then the least and "
     "the greatest difference"),
)  # fmt: skip
Line = tuple[Removal, Effect]


def publish_counterfactual(store: Store, name: str, training: TrainConfig, lines: Sequence[Line]) -> str:
    """Write counterfactual.parquet, .md and .html below benchmarks/<name>/; returns the Markdown."""
    page = counterfactual_page(training, lines)
    files = {
        "counterfactual.parquet": to_parquet(from_rows(KINDS, [_row(training, *line) for line in lines])),
        "counterfactual.md": as_markdown(page).encode(),
        "counterfactual.html": render_tables(page).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)
    return as_markdown(page)


def _row(training: TrainConfig, removal: Removal, effect: Effect) -> dict[str, Any]:
    removed = {"removed": len(removal.retraining.without), "seed": removal.retraining.seed}
    key = {"ranker": removal.ranker, "concept": removal.cell.name, "share": removal.share, "carriers": removal.carriers}
    return {"set": training.set, **key, **removed, "moved": effect.moved, "lost": effect.lost, **asdict(effect)}


def counterfactual_page(training: TrainConfig, lines: Sequence[Line]) -> TablePage:
    """The means of every ranking and share, then every retraining."""
    return TablePage(
        title="What a model loses without the images",
        lead=f"Models of {training.set} trained from scratch without the images that a ranking puts first.",
        tables=(_means(lines), _all(lines)),
        reading=READING,
    )


def _means(lines: Sequence[Line]) -> TextTable:
    groups: dict[tuple[str, float], list[Line]] = {}
    for removal, effect in lines:
        groups.setdefault((removal.ranker, removal.share), []).append((removal, effect))
    rows = tuple(_mean_row(ranker, share, group, lines) for (ranker, share), group in groups.items())
    return TextTable(title="Means", note="Over concepts and seeds.", head=MEANS, rows=rows)


def _mean_row(ranker: str, share: float, group: Sequence[Line], lines: Sequence[Line]) -> tuple[str, ...]:
    at_random = {_pairing(removal): effect for removal, effect in lines if removal.ranker == "random"}
    pairs = [(effect, at_random[_pairing(removal)]) for removal, effect in group if _pairing(removal) in at_random]
    columns: list[str] = []
    for measure in ("moved", "lost"):
        columns.append(signed_text(fmean(getattr(effect, measure) for _, effect in group), 2))
        columns += _differences([getattr(own, measure) - getattr(random, measure) for own, random in pairs])
    return (ranker, f"{share:g}", str(len(group)), *columns, share_text(fmean(e.kept_other for _, e in group)))


def _differences(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "–", "–"
    return signed_text(fmean(values), 2), f"{signed_text(min(values), 2)} to {signed_text(max(values), 2)}"


def _pairing(removal: Removal) -> tuple[str, float, int]:
    return (removal.cell.name, removal.share, removal.retraining.seed)


def _all(lines: Sequence[Line]) -> TextTable:
    rows = tuple(_line(*line) for line in lines)
    return TextTable(
        title="Every retraining", note="One line for each ranking, concept, share and seed.", head=ALL, rows=rows
    )


def _line(removal: Removal, e: Effect) -> tuple[str, ...]:
    return (
        removal.ranker,
        cell_words(removal.cell),
        f"{removal.share:g}",
        str(len(removal.retraining.without)),
        str(removal.carriers),
        str(removal.retraining.seed),
        f"{e.moved_target:.2f}",
        f"{e.moved_other:.2f}",
        signed_text(e.moved, 2),
        share_text(e.present),
        share_text(e.present_control),
        signed_text(e.lost, 2),
        share_text(e.kept_other),
        share_text(e.kept_other_control),
    )
