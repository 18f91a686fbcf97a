"""Tables as a benchmark would fill them, drawn from a seed, as rows of grades that `build_leaderboard` ranks."""

from typing import Any

import numpy as np

from concept_trak.attribution.method import METHODS
from concept_trak.data.benchmarks.two_factors import SHAPES2, SHAPES3, TwoFactors
from concept_trak.evaluation.baselines import GRADIENT_FREE
from concept_trak.evaluation.leaderboard import Leaderboard, Ranker, build_leaderboard
from concept_trak.evaluation.retrieval import Cell, cells

DAMPINGS = (0.01, 1.0, 100.0, 10000.0, float("inf"))
MODELS = ("models/first", "models/second", "models/third")
SKILL = {"fit_trak": 0.93, "caption_trak": 0.85, "concept_trak": 0.6, "lookup": 0.98, "agnostic": 0.66}
BASE = 0.34
REFERENCE = Ranker("fit_trak", "own")


def rankers() -> list[Ranker]:
    """Every method with its own query, three with the concept query, all of them flipped too; and the baselines."""
    signs = [Ranker(name, "own", flipped) for name in METHODS for flipped in (0, 1)]
    signs += [Ranker(name, "concept", flipped) for name in ("trak", "d_trak", "das") for flipped in (0, 1)]
    return signs + [Ranker(name, "none") for name in GRADIENT_FREE]


def row(
    ranker: Ranker, model: str, cell: Cell, query: int, damping: float, ap: float, base: float = BASE
) -> dict[str, Any]:
    """One graded ranking, with its model and method."""
    graded = {
        "average_precision": ap,
        "precision_at_10": round(ap, 1),
        "recall_at_carriers": 0.9 * ap,
        "gain_named": float("nan"),
        "gain_unnamed": float("nan"),
        "separation": ap,
    }
    where = {"model": model, "concept": cell.name, "query": query, "damping": damping, "base_rate": base}
    return {**ranker._asdict(), **where, **graded}


def grades(kinds: TwoFactors, seed: int = 0, queries: int = 4, skill: dict[str, float] = SKILL) -> list[dict[str, Any]]:
    """Rows for every ranker; a method is at its best at damping 100, and less good out of distribution."""
    rng, rows = np.random.default_rng(seed), []
    for ranker in rankers():
        for damping in DAMPINGS if ranker.query_kind != "none" else DAMPINGS[-1:]:
            rank = abs(DAMPINGS.index(damping) - 2) if ranker.query_kind != "none" else 0
            level = skill.get(ranker.method, 0.45 + 0.1 * (ranker.query_kind == "concept")) - 0.06 * rank
            level = 0.5 - 0.5 * level if ranker.flipped else level
            for m, model in enumerate(MODELS):
                for cell in cells(kinds):
                    mean = level - 0.08 * cell.held_out - 0.02 * m
                    values = np.clip(rng.normal(mean, 0.04, queries), 0, 1)
                    rows += [row(ranker, model, cell, q, damping, float(ap)) for q, ap in enumerate(values)]
    return rows


def leaderboard(kinds: TwoFactors = SHAPES3, **changed: Any) -> Leaderboard:
    """A whole data set; `changed` as in `grades`."""
    evaluations = {name: m.train.evaluations for name, m in METHODS.items()} | dict.fromkeys(GRADIENT_FREE, 0)
    return build_leaderboard(kinds.name, grades(kinds, **changed), cells(kinds), REFERENCE, evaluations)


def two() -> tuple[Leaderboard, Leaderboard]:
    """Two data sets: one where the reference is ahead, one where it is level with the best baseline."""
    return leaderboard(), leaderboard(SHAPES2, skill=SKILL | {"fit_trak": 0.55, "caption_trak": 0.5})
