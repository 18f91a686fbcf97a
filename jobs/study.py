"""What makes a row work, one thing at a time: `python -m jobs.study [key=value ...]`.

The rows of a benchmark and their variants (`conf/study.yaml`), and the rows under other settings (`RUNS`), each beside
the row it comes from. Writes study.md, study.html and study.parquet below `benchmarks/<name>/`; keys are those of
`jobs.benchmark`, and what is computed is kept as there, so that a killed study goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from concept_trak.config import absolute
from concept_trak.evaluation.leaderboard import Arm, table
from concept_trak.evaluation.pipeline import compared, costs
from concept_trak.evaluation.study import RUNS, _name, _of, _renamed, families_of, run_of
from concept_trak.evaluation.suite import BenchmarkConfig
from concept_trak.report.study_page import _publish, sheet
from concept_trak.report.table_page import as_markdown
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.exit_codes import ended


def study(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]] = RUNS) -> int:
    """Every row, variant and run on every model, then one page; returns the exit code."""
    return ended(lambda: _study(replace(config, store=absolute(config.store)), runs))


def _study(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]]) -> int:
    families, grades, cost = families_of(config, runs), dict[str, list[dict[str, Any]]](), costs(config)
    for one in (found := compared(config)):
        grades[one.title] = [row for row in one.grades if row["asked"] != "concept"]
    for change in runs:
        for one in compared(run_of(config, families, change)):
            grades[one.title] += [_renamed(row, change) for row in one.grades if row["asked"] == "own"]
    cost |= {_name(f.row, change): cost[f.row] for f in families for change in runs}
    tables = [
        table(f"{one.title}, from {f.row}", list(_of(f, grades[one.title])), one.cells, Arm(f.row, "own"), cost)
        for one in found
        for f in families
    ]
    page = sheet(tables, families * len(found))
    _publish(Store(config.store), config.name, tables, page)
    print(as_markdown(page))
    print(f"page       {config.store}/benchmarks/{config.name}/study.html")
    return 0


if __name__ == "__main__":
    main(BenchmarkConfig, "study", study)
