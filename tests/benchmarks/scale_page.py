"""The page of `scale.py`: tables by audit, the exponents of growth, and the bounds of the design."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LISTINGS = "page of a listing"
NOISE = 2.0  # seconds of CPU below which an exponent says nothing
Rows = Sequence[Mapping[str, Any]]

HEAD = """# Scale

`{command}` on {machine}, one core; seconds are the driver's CPU time (`time.process_time`), without its workers'.

*Simulated*: storage and workers. Storage is a table of names that answers reads from memory and lists 1,000 names
a page; 1,000 workers on virtual time fail at 0.1 %. One method, 16 concepts, the 100 best and worst of each, k = 4096
float16. *Real*: listing, plan, records, the tree of Grams, queue, progress, tally, tables, page, manifest, diff and gc.

*Real, by ...*: this machine's disk, with features of random numbers in place of gradients; survey, parts, Grams,
solve, scores, aggregates, tables and page are real.

Python's full collections of garbage are a row of their own: each costs as much as everything in memory, in whatever
stage it comes.

Audits: `first`; `grown`, after 1 % of new sources; `same`, of unchanged data; `gc`, which keeps the last audit only.
The exponent is the slope of log(figure) over log(size) between the last two sizes; "–" where it is within {noise:g} s.
"""


def publish_scale(folder: Path, tables: Mapping[str, Rows], command: str) -> Path:
    """Write the page and its numbers; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.json").write_text(json.dumps(tables, indent=1) + "\n")
    parts = [HEAD.format(command=command, machine=f"{platform.processor() or platform.machine()}", noise=NOISE)]
    parts += [_table(name, rows) for name, rows in tables.items()]
    if rows := tables.get("simulated, by shards"):
        parts.append(_stages(rows[-1]))
        parts.append(_bounds(tables))
    page = folder / "scale.md"
    page.write_text("\n".join(parts))
    return page


def _table(name: str, rows: Rows) -> str:
    by_samples = name.endswith("samples")
    lines = [f"## {name.capitalize()}\n", "| samples | shards | peak MB | "
             + " | ".join(f"{audit}: CPU s | requests | list pages" for audit in rows[0]["audits"]) + " |"]  # fmt: skip
    lines.append("|--:" * (3 + 3 * len(rows[0]["audits"])) + "|")
    for row in rows:
        cells = [f"{row['samples']:,}", f"{row['shards']:,}", f"{row['peak'] / 1e6:.0f}"]
        for audit in row["audits"].values():
            cells += [f"{seconds(audit):.1f}", f"{requests(audit):,}", f"{pages(audit):,}"]
        lines.append("| " + " | ".join(cells) + " |")
    if len(rows) > 1:
        size = "samples" if by_samples else "shards"
        cells = ["exponent", "", exponent(rows, size, lambda row: row["peak"], 0)]
        for audit in rows[0]["audits"]:
            cells += [exponent(rows, size, lambda row, a=audit: seconds(row["audits"][a]), NOISE)]
            cells += [exponent(rows, size, lambda row, a=audit: requests(row["audits"][a]), 0)]
            cells += [exponent(rows, size, lambda row, a=audit: pages(row["audits"][a]), 0)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _stages(row: Mapping[str, Any]) -> str:
    audits = row["audits"]
    stages = list(dict.fromkeys(stage for audit in audits.values() for stage in audit["seconds"]))
    lines = [f"## The largest simulation by stage: {row['shards']:,} shards\n",
             "| stage | " + " | ".join(f"{audit}: CPU s | requests" for audit in audits) + " |",
             "|---" + "|--:" * (2 * len(audits)) + "|"]  # fmt: skip
    for stage in stages:
        cells = [stage]
        for audit in audits.values():
            kinds = audit["requests"].get(stage, {})
            cells += [f"{audit['seconds'].get(stage, 0):.1f}", f"{sum(kinds.values()):,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _bounds(tables: Mapping[str, Rows]) -> str:
    rows = tables["simulated, by shards"]
    last = rows[-1]
    first, grown, same = (last["audits"][audit] for audit in ("first", "grown", "same"))
    bounds = [
        ("driver's memory", f"{last['peak'] / 1e9:.2f} GB", "4 GB", last["peak"] <= 4e9),
        ("CPU of the first audit", f"{seconds(first) / 60:.1f} min", "60 min", seconds(first) <= 3600),
        ("CPU after 1 % growth", f"{seconds(grown) / 60:.1f} min", "15 min", seconds(grown) <= 900),
        ("requests per new shard, first audit", f"{requests(first) / last['shards']:.3f}", "3",
         requests(first) <= 3 * last["shards"]),
        ("requests of the grown audit beyond those of the same one, per new shard",
         f"{(requests(grown) - requests(same)) / last['new']:.2f}", "3",
         requests(grown) - requests(same) <= 3 * last["new"]),
        ("requests of the audit of unchanged data, per shard", f"{requests(same) / last['shards']:.3f}", "0",
         requests(same) < 0.01 * last["shards"]),
    ]  # fmt: skip
    lines = [f"## Bounds, at {last['samples']:,} samples in {last['shards']:,} shards\n", "| figure | is | bound | |",
             "|---|--:|--:|---|"]  # fmt: skip
    lines += [
        f"| {name} | {is_} | {bound} | {'holds' if holds else 'DOES NOT HOLD'} |" for name, is_, bound, holds in bounds
    ]
    return "\n".join(lines) + "\n"


def seconds(audit: Mapping[str, Any]) -> float:
    return sum(audit["seconds"].values())


def requests(audit: Mapping[str, Any]) -> int:
    """All but the pages of listings."""
    return sum(n for kinds in audit["requests"].values() for kind, n in kinds.items() if kind != LISTINGS)


def pages(audit: Mapping[str, Any]) -> int:
    return sum(kinds.get(LISTINGS, 0) for kinds in audit["requests"].values())


def exponent(rows: Rows, size: str, figure: Any, least: float) -> str:
    """The slope between the last two rows in logarithms."""
    before, after = rows[-2:]
    if figure(after) <= least or figure(before) <= 0:
        return "–"
    return f"{math.log(figure(after) / figure(before)) / math.log(after[size] / before[size]):.2f}"
