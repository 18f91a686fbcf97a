"""A causal test's results as people read them: Parquet, Markdown, a page. Every retraining is shown."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from concept_trak.evaluation.counterfactual import Case, Effect
from concept_trak.evaluation.training.benchmark_models import TrainConfig
from concept_trak.report.benchmark_page import share, signed, words
from concept_trak.report.table_page import Ledger, Sheet, as_markdown, render_sheet
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

KINDS = {"set": "string", "arm": "string", "concept": "string", "share": "float64", "carriers": "int64",
         "removed": "int64", "seed": "int64", "moved": "float64", "lost": "float64", "moved_target": "float64",
         "moved_other": "float64", "present": "float64", "present_control": "float64", "kept_other": "float64",
         "kept_other_control": "float64"}  # fmt: skip
READING = (
    ("removed", "how many training images were left out: the first of the arm's ranking, as a share of the images that "
     "show the concept"),
    ("moved", "Euclidean distance between pictures of the retrained model and of its control from the same noise, mean "
     "over the prompts that name the concept less the mean over the others"),
    ("lost", "presence of the concept in the control's pictures of the prompts that name it, less that in the "
     "retrained model's; the judge of the data set looks"),
    ("others kept", "how often the other prompts still show the other value that they name"),
    ("control", "trained on everything from the same seed: the same first weights, and the same batches but for the "
     "places of the images left out"),
    ("random", "as many images left out at random: what any removal does"),
    ("less random's", "means of the differences to the random removal of the same concept, size and seed, and their "
     "least and greatest"),
)  # fmt: skip
Line = tuple[Case, Effect]


def publish(store: Store, name: str, made: TrainConfig, lines: Sequence[Line]) -> str:
    """counterfactual.parquet, .md and .html below benchmarks/<name>/; the text is returned."""
    page = sheet(made, lines)
    files = {
        "counterfactual.parquet": to_parquet(from_rows(KINDS, [_row(made, *line) for line in lines])),
        "counterfactual.md": as_markdown(page).encode(),
        "counterfactual.html": render_sheet(page).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)
    return as_markdown(page)


def _row(made: TrainConfig, case: Case, found: Effect) -> dict[str, Any]:
    removed = {"removed": len(case.retraining.without), "seed": case.retraining.seed}
    asked = {"arm": case.arm, "concept": case.cell.name, "share": case.share, "carriers": case.carriers}
    return {"set": made.set, **asked, **removed, "moved": found.moved, "lost": found.lost, **asdict(found)}


def sheet(made: TrainConfig, lines: Sequence[Line]) -> Sheet:
    """The means of every arm and share, then every retraining."""
    lead = f"Models of {made.set} trained from scratch without the images that a ranking puts first."
    return Sheet("What is lost with the images", lead, (_means(lines), _all(lines)), READING)


def _means(lines: Sequence[Line]) -> Ledger:
    head = ("arm", "share", "retrainings", "moved", "less random's", "least to greatest", "lost", "less random's",
            "least to greatest", "others kept")  # fmt: skip
    groups = {(case.arm, case.share): [] for case, _ in lines}
    for case, found in lines:
        groups[case.arm, case.share].append((case, found))
    rows = tuple(_mean_row(arm, k, group, lines) for (arm, k), group in groups.items())
    return Ledger("Means", "Over concepts and seeds.", head, rows)


def _mean_row(arm: str, k: float, group: Sequence[Line], lines: Sequence[Line]) -> tuple[str, ...]:
    chance = {_pairing(case): found for case, found in lines if case.arm == "random"}
    pairs = [(found, chance[_pairing(case)]) for case, found in group if _pairing(case) in chance]
    columns: list[str] = []
    for measure in ("moved", "lost"):
        over = [getattr(ours, measure) - getattr(theirs, measure) for ours, theirs in pairs]
        beside = (signed(fmean(over), 2), f"{signed(min(over), 2)} to {signed(max(over), 2)}") if over else ("–", "–")
        columns += [signed(fmean(getattr(found, measure) for _, found in group), 2), *beside]
    return (arm, f"{k:g}", str(len(group)), *columns, share(fmean(found.kept_other for _, found in group)))


def _pairing(case: Case) -> tuple[str, float, int]:
    return (case.cell.name, case.share, case.retraining.seed)


def _all(lines: Sequence[Line]) -> Ledger:
    head = ("arm", "concept", "share", "removed", "carriers", "seed", "moved: targets", "others", "difference",
            "present", "in the control", "lost", "others kept", "in the control")  # fmt: skip
    rows = tuple(_line(*line) for line in lines)
    return Ledger("Every retraining", "One line for each arm, concept, share and seed.", head, rows)


def _line(case: Case, e: Effect) -> tuple[str, ...]:
    left_out = (f"{case.share:g}", str(len(case.retraining.without)), str(case.carriers), str(case.retraining.seed))
    moved = (f"{e.moved_target:.2f}", f"{e.moved_other:.2f}", signed(e.moved, 2))
    present = (share(e.present), share(e.present_control), signed(e.lost, 2))
    return (case.arm, words(case.cell), *left_out, *moved, *present, share(e.kept_other), share(e.kept_other_control))
