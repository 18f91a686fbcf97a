"""Who competes, in which task: one row a contestant, one function `build(work, **settings) -> round` each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What a round leaves behind: features [n, k] or scores [queries, n], and the bytes a sample it would store."""

    features: Tensor | None = None
    scores: Tensor | None = None
    stored: int | None = None


Round = Callable[[], Output]


@dataclass(frozen=True)
class Contestant:
    """`module` (below tests.benchmarks) has `build`; `group` says what may be compared with what.

    Groups: passes (a floor), capture (nothing projected), dense (one dense matrix, k = 512), projected (k numbers a
    sample, any way), scores (no features), reference (the authors').
    """

    name: str
    task: str
    module: str
    group: str
    settings: dict[str, Any] = field(default_factory=dict)
    build: str = "build"

    @property
    def key(self) -> str:
        return f"{self.task}/{self.name}"

    @property
    def rival(self) -> bool:
        return self.module.startswith("rivals.")


PLAIN, CAPTURE, AUTHORS = "plain passes", "ours: capture, unit norms", "the authors' way: mask 4096"
WIDE, MASK = "ours: default projector, k = 4096", "ours: mask 4096"


def _floor(task: str) -> Contestant:
    return Contestant(PLAIN, task, "floors", "passes", {"backward": True})


def _ours(task: str, name: str, kind: str, dim: int, group: str = "projected") -> Contestant:
    return Contestant(name, task, "ours", group, {"kind": kind, "dim": dim})


def _capture(task: str) -> Contestant:
    return Contestant(CAPTURE, task, "ours", "capture", build="build_capture")


def _authors(task: str) -> Contestant:
    return Contestant(AUTHORS, task, "authors", "reference", {"dim": 4096})


OURS = [
    _floor("rows"),
    Contestant("plain forward", "rows", "floors", "passes", {"backward": False}),
    _capture("rows"),
    _ours("rows", "ours: dense 512", "rademacher", 512, "dense"),
    _ours("rows", WIDE, "", 4096),
    _ours("rows", MASK, "mask", 4096),
    _floor("attention"),
    _ours("attention", "ours: default projector, k = 1024", "", 1024),
    _floor("states"),
    _capture("states"),
    _ours("states", WIDE, "", 4096),
    _ours("states", MASK, "mask", 4096),
    _authors("states"),
    _floor("side"),
    _ours("side", MASK, "mask", 4096),
    _authors("side"),
    _floor("cheaper"),
    _ours("cheaper", MASK, "mask", 4096),
]

RIVALS = [
    Contestant("traker: normal 512, matrix kept", "rows", "rivals.traker", "dense", {"dim": 512}),
    Contestant("dattri: normal 512", "rows", "rivals.dattri", "dense", {"kind": "normal", "dim": 512}),
    Contestant("dattri: random_mask 4096", "rows", "rivals.dattri", "projected", {"kind": "random_mask", "dim": 4096}),
    Contestant("dattri-llm: factors", "rows", "rivals.dattri_llm", "capture", {"style": "", "dim": 0}),
    Contestant("dattri-llm: mask 16/layer", "rows", "rivals.dattri_llm", "projected", {"style": "mask", "dim": 16}),
    Contestant("dattri-llm: dense 16/layer", "rows", "rivals.dattri_llm", "projected", {"style": "dense", "dim": 16}),
    Contestant("dattri-llm: logra 4", "rows", "rivals.dattri_llm", "projected", {"style": "logra", "dim": 4}),
    Contestant("kronfluence: identity, 8 queries", "rows", "rivals.kronfluence", "scores"),
    Contestant("bergson: 16", "attention", "rivals.bergson", "projected", {"dim": 16}),
    Contestant("dattri-llm: logra 16", "attention", "rivals.dattri_llm", "projected", {"style": "logra", "dim": 16}),
]

# Their random matrices take minutes to make where there are a million parameters.
ON_TINY = ("dattri: normal 512", "dattri-llm: dense 16/layer")


def entered(model: str) -> list[Contestant]:
    """Who competes on a model: everybody on `tiny`; elsewhere neither the task on attention alone, nor `ON_TINY`."""
    everybody = [*OURS, *RIVALS]
    if model == "tiny":
        return everybody
    return [one for one in everybody if one.task != "attention" and one.name not in ON_TINY]
