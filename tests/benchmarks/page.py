"""The page: one table a model and task, the ratios that matter, and under which conditions all of it was measured."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.claims import COSINE, Claim, claims, same_features
from tests.benchmarks.contest import RIVALS, Standing
from tests.benchmarks.contestants import PLAIN

MIB = 2**20
HEAD = (
    "| contestant | k | samples / CPU-s | of floor | CPU-s | wall s | peak MiB | bytes each | agreement | rounds |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
LEGEND = """Every contestant has a process of its own and one thread, the same weights and samples, and plays one round
at a time, in turn with all others; figures are medians of its rounds, after one that is not counted. CPU-s is the
processor time of all threads of its process. *Of floor*: its samples per CPU-second over those of the plain batched
passes that the task needs. *Peak* is the most memory held during a round above what it held before its first.
*Bytes each*: what it would store of a sample.
*Agreement*: mean over 8 queries of Spearman's correlation of its inner products with those of unprojected float64
gradients, written out one sample at a time; it is coarse where there are few others to rank.
"""
TASKS = {
    "rows": "denoising error at one state, all layers' parameters",
    "attention": "denoising error at one state, the parameters of attention only",
    "states": "gradient stage: reconstruction reward at nine noised states, unit norms, summed",
    "side": "whole training side of concept_trak: guided inversion, then the same nine states on it",
    "cheaper": "whole training side of fit_trak",
}


def row(one: Standing, floor: float | None) -> dict[str, Any]:
    """A contestant's line, as plain values; `floor` is the processor time of its task's plain passes."""
    line: dict[str, Any] = {"task": one.contestant.task, "contestant": one.contestant.name, "failed": one.failed}
    line |= {"group": one.contestant.group, "agreement": one.agreement, "rounds": len(one.rounds)}
    if not one.rounds or one.ready is None or one.answer is None:
        return line
    cpu, features = median(r.cpu for r in one.rounds), one.answer.features
    return line | {
        "samples": one.ready.samples,
        "digest": one.ready.digest,
        "k": None if features is None else features.shape[1],
        "cpu": cpu,
        "wall": median(r.wall for r in one.rounds),
        "per_cpu_second": one.ready.samples / cpu,
        "of_floor": None if floor is None else floor / cpu,
        "peak": max(r.peak for r in one.rounds) - one.ready.rest,
        "stored": one.answer.stored,
        "every_cpu": [r.cpu for r in one.rounds],
        "every_wall": [r.wall for r in one.rounds],
    }


def rows(present: Sequence[Standing]) -> list[dict[str, Any]]:
    floors = {
        one.contestant.task: median(r.cpu for r in one.rounds)
        for one in present
        if one.contestant.name == PLAIN and one.rounds
    }
    return [row(one, floors.get(one.contestant.task)) for one in present]


def publish(folder: Path, found: Mapping[str, Sequence[Standing]], command: str) -> None:
    """speed.md and speed.json of everybody on every model."""
    lines, shown = {model: rows(present) for model, present in found.items()}, []
    for model, present in found.items():
        shown += claims(model, present)
    same = {model: same_features(present) for model, present in found.items()}
    where = conditions(command)
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "conditions": where,
        "rows": lines,
        "claims": [asdict(c) | {"target": c.target._asdict(), "met": c.met} for c in shown],
        "cosine": same,
    }
    (folder / "speed.json").write_text(json.dumps(values, indent=1))
    (folder / "speed.md").write_text(text(lines, shown, same, where))


def text(
    lines: Mapping[str, Sequence[dict[str, Any]]],
    shown: Sequence[Claim],
    same: Mapping[str, Mapping[str, float]],
    where: Mapping[str, Any],
) -> str:
    parts = ["# Speed\n", LEGEND, "## What it shows\n", _shown(shown, same)]
    for model, table in lines.items():
        for task in dict.fromkeys(line["task"] for line in table):
            mine = [line for line in table if line["task"] == task]
            n = next((line["samples"] for line in mine if "samples" in line), 0)
            body = "\n".join(_line(line) for line in sorted(mine, key=lambda x: -x.get("per_cpu_second", 0)))
            parts.append(f"## {model}: {TASKS[task]} ({n} samples)\n\n{HEAD}\n{body}\n")
    parts.append("## Conditions\n\n" + "\n".join(f"- {name}: {value}" for name, value in where.items()) + "\n")
    return "\n".join(parts)


def _shown(shown: Sequence[Claim], same: Mapping[str, Mapping[str, float]]) -> str:
    head = (
        "| ratio of samples per CPU-second | model | measured | range | target | met | agreements |\n"
        "|---|---|--:|--:|--:|---|---|"
    )
    lines = [_claimed(claim) for claim in shown]
    lines += [
        f"| least cosine of our features and the authors' ({task}) | {model} | {value:.6f} | | {COSINE} "
        f"| {_yes(value >= COSINE)} | |"
        for model, tasks in same.items()
        for task, value in tasks.items()
    ]
    return "\n".join([head, *lines]) + "\n"


def _claimed(claim: Claim) -> str:
    target, (least, most) = claim.target, claim.range
    agreements = " / ".join(_or(value, ".3f") or "-" for value in claim.agreements)
    return (
        f"| {target.what}<br>`{target.ours}` / `{target.theirs}` | {claim.model} | {claim.ratio:.2f} "
        f"| {least:.2f} to {most:.2f} | {target.least:.2f} | {_yes(claim.met)} | {agreements} |"
    )


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _line(line: Mapping[str, Any]) -> str:
    if line["failed"]:
        return f"| {line['contestant']} | | failed: {line['failed'].replace('|', '/')} | | | | | | | |"
    cells = (
        line["contestant"],
        _or(line["k"], "d"),
        f"{line['per_cpu_second']:.1f}",
        _or(line["of_floor"], ".2f"),
        f"{line['cpu']:.3f}",
        f"{line['wall']:.3f}",
        f"{line['peak'] / MIB:.0f}",
        _or(line["stored"], "d"),
        _or(line["agreement"], ".3f"),
        f"{line['rounds']}",
    )
    return f"| {' | '.join(cells)} |"


def _or(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def conditions(command: str) -> dict[str, Any]:
    """The machine, its load, and the versions of what was compared."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "command": command,
        "processor": f"{models[0].partition(': ')[2] if models else platform.processor()}, {os.cpu_count()} cores",
        "load at the end (1, 5, 15 minutes)": " ".join(f"{x:.1f}" for x in os.getloadavg()),
        "python, torch": f"{platform.python_version()}, {torch.__version__}",
        "rivals": ", ".join(_versions()) or "not installed",
    }


def _versions() -> list[str]:
    packages = (RIVALS.parents[1] / "lib").glob("python*/site-packages/*.dist-info")
    names = ("traker", "dattri", "dattri_llm", "kronfluence", "bergson", "torch")
    found = sorted(p.name.removesuffix(".dist-info").replace("-", " ") for p in packages)
    return [one for one in found if one.split(" ")[0] in names]
