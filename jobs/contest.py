"""The stages of a benchmark on one model, beside those of an audit: its queries, and the grades of every ranking."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from concept_trak.method import METHODS, Method
from concept_trak.rival import RIVALS, Rivalry
from concept_trak.store.records import Record
from concept_trak.trial import Grading, Inquiry, inquiry_file, ranking_file
from jobs.run import Run


def inquire(run: Run) -> list[str]:
    """phi_q of every query of every side, once for all that ask alike; returns the files."""
    config = run.prepared.config
    asked = {
        inquiry_file(m, c): Inquiry(m, c)
        for row, c in product(config.methods.values(), config.concepts)
        for m in sides(row).values()
    }
    return [name for _, name in run.map("query", "concept_trak.trial:Inquire", list(asked.values()))]


def graded(
    run: Run, records: dict[str, list[Record]], dampings: tuple[float, ...], each: int
) -> Iterator[dict[str, Any]]:
    """The grades of every method with every side's queries, of `each` samples, at every damping."""
    plan = tuple(run.prepared.plan)
    items = [
        Grading(name, asked, side, tuple(records[name]), plan, dampings, each)
        for name, method in run.prepared.config.methods.items()
        for asked, side in sides(method).items()
    ]
    for item, found in run.map("grade", "concept_trak.trial:Grade", items):
        yield from ({"method": item.method, "asked": item.asked, **row} for row in found)


def rivals(run: Run, queries: int) -> Iterator[dict[str, Any]]:
    """The grades of what needs no gradient, against as many queries of every concept."""
    items = [Rivalry(name, tuple(run.prepared.plan), queries) for name in RIVALS]
    for item, found in run.map("rival", "concept_trak.rival:Compete", items):
        yield from ({"method": item.rival, "asked": "none", **row} for row in found)


def rankings(run: Run) -> list[str]:
    """The files of every arm's ranking, which its grading wrote."""
    arms = [(name, asked) for name, method in run.prepared.config.methods.items() for asked in sides(method)]
    return [ranking_file(*arm) for arm in (*arms, *((rival, "none") for rival in RIVALS))]


def sides(method: Method) -> dict[str, Method]:
    """The method with its own query, and a whole-image row with the concept query too."""
    if method.query.direction == "concept_reward":
        return {"own": method}
    return {"own": method, "concept": replace(method, query=METHODS["concept_trak"].query)}
