"""Passes over features at memory speed: `python -m tests.benchmarks.passes [out=folder] [sizes=1000,10000,100000]`.

Ours are the workers of an audit, called as an audit calls them on parts that the codec wrote, with everything they do:
every part against its sha256, of the scores the ends and the histograms, the Gram to its file. Beside them stand the
plain ways, in the same process, interleaved, medians: a float32 product of what is in memory, and the same files read
whole and unchecked, widened with `.float()` and multiplied, one after another. One thread multiplies in either. Ours
reads in two more, so CPU-seconds stand beside wall time; `cores` says what there is.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from concept_trak.attribution.fisher import stored_gram
from concept_trak.attribution.ranking import stored_scores
from concept_trak.store.part import DTYPES
from tests.benchmarks.on_storage import found, write

K, QUERIES, ROUNDS = 2048, 64, 5
SIZES = (1_000, 10_000, 100_000)
COMPARED = 16_384  # samples of the comparisons: four parts, 67 MB in float16
Row = dict[str, Any]


@dataclass(frozen=True)
class Timed:
    wall: float
    cpu: float


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timed]:
    """Medians, in seconds, of every way taken in turn; the first turn warms up and does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Timed(median(w for w, _ in all_[1:]), median(c for _, c in all_[1:])) for name, all_ in taken.items()}


def from_memory(n: int, k: int, queries: int, rounds: int) -> list[Row]:
    """float32 rows in memory: ours against one plain product."""
    unit, z, one = torch.randn(n, k), torch.randn(queries, k), torch.ones(n)
    out, z_t = torch.empty(n, queries), z.T.contiguous()

    ways = {
        "score": (lambda: stored_scores(unit, one, z, out), lambda: torch.mm(unit, z_t, out=out)),
        "gram": (lambda: stored_gram([(unit, one)]), lambda: unit.T @ unit),
    }
    return [_compared(f"{name}, from memory", "float32", pair, rounds) for name, pair in ways.items()]


def from_storage(folder: Path, n: int, k: int, queries: int, rounds: int) -> list[Row]:
    """Ours against read, widen and multiply one after another, on the same files."""
    rows = []
    for dtype in DTYPES:
        b = write(folder / dtype, n, k, queries, dtype)
        size = sum(record.bytes for record in b.records) / n
        for name, pair in (("score", (b.score, b.score_plainly)), ("gram", (b.gram, b.gram_plainly))):
            rows.append(_compared(f"{name}, from storage", dtype, pair, rounds) | {"bytes_per_sample": size})
    return rows


def _compared(what: str, dtype: str, pair: tuple[Callable[[], object], Callable[[], object]], rounds: int) -> Row:
    ours, plain = interleaved(dict(zip(("ours", "plain"), pair, strict=True)), rounds).values()
    seconds = {"ours_s": ours.wall, "ours_cpu_s": ours.cpu, "plain_s": plain.wall, "plain_cpu_s": plain.cpu}
    return {"pass": what, "dtype": dtype, **seconds, "times_plain": plain.wall / ours.wall}


def one_pass(folder: Path, queries: int) -> Row:
    """Seconds and growth of memory of one pass of each kind over the float16 features that stand there."""
    b = found(folder, queries, "float16")
    n, standing = sum(record.rows for record in b.records), _status("VmRSS")
    row: Row = {"samples": n, "parts": len(b.records)}
    for name, way in (("score", b.score), ("gram", b.gram)):
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is this pass's own
        start = time.perf_counter()
        way()
        seconds = time.perf_counter() - start
        row |= {f"{name}_s": seconds, f"{name}_us_per_sample": 1e6 * seconds / n}
        row |= {f"{name}_peak_mb": _status("VmHWM") - standing}
    return row


def _status(key: str) -> float:
    """A line of Linux's /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{key}:"))


def by_size(folder: Path, sizes: list[int], k: int, queries: int) -> list[Row]:
    """Each size in a process of its own, so that no size inherits another's memory."""
    rows = []
    for n in sizes:
        write(folder / str(n), n, k, queries, "float16")
        command = [sys.executable, "-m", "tests.benchmarks.passes", f"measure={folder / str(n)}"]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown; numbers to three digits."""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(result: Row) -> str:
    how = f"k = {result['k']}, {result['queries']} queries, {result['compared']} samples, {result['cores']} cores"
    tables = {"From memory": "memory", "From storage": "storage", "By size (float16)": "sizes"}
    return "\n\n".join(
        [f"# Passes over features\n\n{how}.", *(f"## {t}\n\n{table(result[r])}" for t, r in tables.items())]
    )


def compare(folder: Path, n: int, k: int, queries: int, rounds: int) -> Row:
    """Both comparisons and what they were made of."""
    conditions = {"k": k, "queries": queries, "compared": n, "rounds": rounds, "cores": os.cpu_count()}
    memory = from_memory(n, k, queries, rounds)
    return {**conditions, "memory": memory, "storage": from_storage(folder, n, k, queries, rounds)}


def main(out: str = "results/benchmarks/passes", sizes: str = ",".join(map(str, SIZES)), measure: str = "") -> None:
    torch.set_num_threads(1)
    if measure:
        print(json.dumps(one_pass(Path(measure), QUERIES)))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        result = compare(Path(folder), COMPARED, K, QUERIES, ROUNDS)
        result["sizes"] = by_size(Path(folder), [int(n) for n in sizes.split(",")], K, QUERIES)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "passes.json").write_text(json.dumps(result, indent=2))
    (Path(out) / "passes.md").write_text(page(result) + "\n")
    print(page(result))


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
