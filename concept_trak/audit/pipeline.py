"""The stages of an audit on an executor, each skipping what is done. Nothing large passes through here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.executor import Executor, Outcome, Resources, Task
from concept_trak.attribution.by_layer import SPLIT, layer_names
from concept_trak.attribution.state import Probe
from concept_trak.audit.aggregate import Aggregate, Aggregated, Aggregating
from concept_trak.audit.diff import Difference
from concept_trak.audit.featurize import Featuring, Featurize
from concept_trak.audit.gram import Group, Solution, Solve, SumGroup, System
from concept_trak.audit.layer_scores import Asked, Parting, Parts, Shares, Split
from concept_trak.audit.plan import group_name, groups
from concept_trak.audit.prepare import QUERY_KINDS, Prepared, query_row
from concept_trak.audit.query_features import Answer, Query
from concept_trak.audit.results import Tally, rejects_by_reason
from concept_trak.audit.score import FORMS, Score, column, scorings
from concept_trak.audit.shown_samples import Look, Seen, Show
from concept_trak.store.grams import gram_name
from concept_trak.store.manifest import query_file, write_table
from concept_trak.store.records import Record, committed
from concept_trak.store.tables import from_rows
from jobs.exit_codes import failure, write_log
from jobs.progress import Progress

INLINE_AT_MOST = 200  # pictures in a page of one file: beyond, it takes seconds to load


@dataclass
class Run:
    """One audit under way, and what each of its stages found."""

    prepared: Prepared
    executor: Executor
    progress: Progress
    computed: dict[str, int] = field(default_factory=dict)

    def featurize(self) -> dict[str, list[Record]]:
        """The records of every shard for every method; the missing shards are computed now."""
        p = self.prepared
        names = [shard.name for shard in p.plan]
        # Methods that differ in their queries alone share one feature set, which the first of them computes.
        sets = {fp: committed(p.store, fp, names) for fp in dict.fromkeys(p.work.fingerprints.values())}
        found = {m: sets[fp] for m, fp in p.work.fingerprints.items()}
        missing = self._missing(found)
        self.computed = {m: sum(item.shard.rows for item in missing if m in item.methods) for m in found}
        self._say_what_is_there(found, missing)
        for item, records in self.map("featurize", Featurize, missing, lambda item: item.shard.rows):
            for method, record in zip(item.methods, records, strict=True):
                found[method][item.shard.name] = record
            self._check_rejects(found)
        self._check_rejects(found)
        return {m: [records[name] for name in names] for m, records in found.items()}

    def _missing(self, found: dict[str, dict[str, Record]]) -> list[Featuring]:
        """The shards to compute; methods that stand on the same states are computed together."""
        first, by_path, p = dict[str, str](), dict[Probe, list[str]](), self.prepared
        for method, fp in p.work.fingerprints.items():
            if first.setdefault(fp, method) == method:
                by_path.setdefault(p.config.methods[method].train.path, []).append(method)
        together = [
            (tuple(m for m in methods if shard.name not in found[m]), shard)
            for methods in by_path.values()
            for shard in p.plan
        ]
        return [Featuring(methods, shard) for methods, shard in together if methods]

    def sum_grams(self, records: dict[str, list[Record]]) -> dict[str, tuple[str, ...]]:
        """The names of each method's groups whose Grams are in the store; the missing ones are summed now."""
        p = self.prepared
        standing = {n for fp in p.work.fingerprints.values() for n in p.store.names(f"features/{fp}/grams")}
        wanted: dict[str, list[Group]] = {}
        for method, parts in records.items():
            by_name = {record.shard: record for record in parts if record.rows}
            for group in groups(p.plan):
                kept = tuple(by_name[s.name] for s in group if s.name in by_name)
                if kept:
                    wanted.setdefault(method, []).append(Group(method, group_name(group), kept))
            if method not in wanted:
                raise Stopped(f"not one sample has a feature for {method}: all were rejected ({_counted(parts)})", 3)
        todo = {gram_name(p.work.fingerprints[g.method], g.name): g for gs in wanted.values() for g in gs}
        missing = [group for name, group in todo.items() if name not in standing]
        for _ in self.map("gram", SumGroup, missing):
            pass
        return {method: tuple(g.name for g in gs) for method, gs in wanted.items()}

    def ask(self) -> dict[tuple[str, str], Answer]:
        """phi_q and the pictures of every concept for every method."""
        questions = list(self.prepared.questions)
        answers = self.map("query", Query, questions)
        return {(answer.method, answer.concept): answer for _, answer in answers}

    def solve(
        self,
        answers: dict[tuple[str, str], Answer],
        records: dict[str, list[Record]],
        summed: dict[str, tuple[str, ...]],
    ) -> dict[str, Solution]:
        """z of every concept, written to `queries/`."""
        p, concepts = self.prepared, self.prepared.config.concepts
        systems = [
            System(m, names, tuple(answers[m, c.name].phi for c in concepts), tuple(records[m]))
            for m, names in summed.items()
        ]
        solved = {s.method: s for _, s in self.map("solve", Solve, systems)}
        for method, solution in solved.items():
            for i, concept in enumerate(concepts):
                row = query_row(solution, i, answers[method, concept.name])
                write_table(p.audit, query_file(method, concept.name), from_rows(QUERY_KINDS, [row]))
        return solved

    def score(self, records: dict[str, list[Record]]) -> Tally:
        """The tally of every score; with `scores=all`, every score is in the store as well."""
        plan = self.prepared.plan if self.prepared.config.aggregates else ()
        items = [item for m, parts in records.items() for item in scorings(m, parts, plan)]
        tally = Tally(self.prepared.config.top)
        for _, scored in self.map("score", Score, items, lambda item: item.rows):
            tally.add(scored)
        return tally

    def aggregate(self, records: dict[str, list[Record]]) -> dict[str, Aggregated]:
        """By method what the page shows of the tables by source, label and word; {} where none are asked for."""
        cut = {m: tuple(item.records[0].shard for item in scorings(m, parts)) for m, parts in records.items()}
        items = [Aggregating(m, tables) for m, tables in cut.items()] if self.prepared.config.aggregates else []
        return {done.method: done for _, done in self.map("aggregate", Aggregate, items)}

    def look(self, tally: Tally) -> dict[str, Seen]:
        """Captions and labels of every sample at an end, and pictures of those the page shows."""
        plan = {shard.name: shard for shard in self.prepared.plan}
        wanted: dict[str, set[str]] = {}
        for _, sample, shard in tally.entries():
            wanted.setdefault(shard, set()).add(sample)
        shown, files = self._shown(tally), self.files(tally)
        looks = [
            Look(plan[name], tuple(sorted(ids)), frozenset(ids & shown), self.prepared.resolution, files)
            for name, ids in wanted.items()
        ]
        return {seen.sample_id: seen for _, all_seen in self.map("look", Show, looks) for seen in all_seen}

    def _shown(self, tally: Tally) -> set[str]:
        """The samples whose pictures the page shows."""
        shown = self.prepared.config.shown
        return {e[1] for ends in tally.ends.values() for e in ends.top[:shown] + ends.bottom[:shown]}

    def files(self, tally: Tally) -> bool:
        """Whether the report is a folder, with pictures as files, and not one page that holds everything."""
        kind = self.prepared.config.report
        return kind == "folder" or (kind == "auto" and len(self._shown(tally)) > INLINE_AT_MOST)

    def map(
        self,
        stage: str,
        worker: Callable[[Any], Any],
        items: Sequence[Any],
        samples: Callable[[Any], int] = lambda item: 0,
    ) -> Iterator[tuple[Any, Any]]:
        """(item, result) as they finish; the failures of single items are told at the end, when the others are safe."""
        if not items:
            return
        c, failed = self.prepared.config.cluster, list[Outcome]()
        task, resources = Task(worker, self.prepared.work), Resources(c.cpus, c.gpus, c.memory)
        outcomes = self.executor.map(task, items, resources, self.progress.watch)
        for outcome in self.progress.track(stage, outcomes, len(items), samples):
            if outcome.error is None:
                yield outcome.item, outcome.result
            else:
                failed.append(outcome)
                write_log(self.prepared.audit, stage, outcome.item, outcome.error)
        if failed:
            raise failure(stage, failed, len(items))

    def _check_rejects(self, found: dict[str, dict[str, Record]]) -> None:
        config = self.prepared.config
        for method, records in found.items():
            rejected = sum(record.rejected for record in records.values())
            if rejected > config.budget.rejects * self.prepared.samples:
                raise Stopped(
                    f"{rejected} of {self.prepared.samples} samples were rejected for {method} "
                    f"({_counted(records.values())}), over budget.rejects={config.budget.rejects:g}. Mend the data and "
                    "start a new audit, or raise the budget; the finished shards are kept.",
                    3,
                )

    def _say_what_is_there(self, found: dict[str, dict[str, Record]], missing: Sequence[Featuring]) -> None:
        by = {fp: m for m, fp in reversed(self.prepared.work.fingerprints.items())}
        for method, records in found.items():
            first = by[self.prepared.work.fingerprints[method]]
            left = sum(1 for item in missing if first in item.methods)
            what = f"{left} to compute" if left else "no gradient work"
            done = f"{len(records)} of {len(self.prepared.plan)} shards are done"
            shared = f", shared with {first}" if first != method else ""
            self.progress.line(f"features   {method}: {done}, {what}{shared}")


def _counted(records: Iterable[Record]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in rejects_by_reason(records).items())


class Stopped(RuntimeError):
    """A run that ends early: nothing is lost, and `exit_code` says why (3 rejects, 5 failed work)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def shares(run: Run, tally: Tally) -> Shares:
    """Every score at an end of a ranking, split; nothing where the projector mixes layers."""
    p = run.prepared
    if p.config.projector.kind not in SPLIT:
        return Shares()
    wanted = dict[tuple[str, str], list[Asked]]()
    for method in p.config.methods:
        for concept in p.config.concepts:
            for form in FORMS:
                ends = tally.ends[method, column(concept.name, form)]
                for _, sample, shard in (*ends.top, *ends.bottom):
                    wanted.setdefault((method, shard), []).append((concept.name, form, sample))
    sizes = tuple(p.sizes.items())
    items = [Parting(*place, tuple(dict.fromkeys(asked)), sizes) for place, asked in wanted.items()]
    made = Parts()
    for item, split in run.map("joint", Split, items):
        made.update({(item.method, *asked): row for asked, row in zip(item.wanted, split, strict=True)})
    return Shares(layer_names(p.sizes), made)


@dataclass(frozen=True)
class Found:
    """What the stages of a run found: by method, or by (method, concept); `measures` by concept, then column.

    `since` names the audit that it was compared with, "" none; `differences` are what came out.
    """

    records: dict[str, list[Record]]
    answers: dict[tuple[str, str], Answer]
    solved: dict[str, Solution]
    tally: Tally
    seen: dict[str, Seen]
    measures: dict[str, dict[str, dict[str, float]]]
    aggregated: dict[str, Aggregated]
    shares: Shares = field(default_factory=Shares)
    since: str = ""
    differences: tuple[Difference, ...] = ()

    @property
    def parts(self) -> list[Record]:
        """The records of every method, one list."""
        return [record for records in self.records.values() for record in records]
