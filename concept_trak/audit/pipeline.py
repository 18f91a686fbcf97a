"""The stages of an audit over a mapper. Each skips finished work, and no large data pass through the driver."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from concept_trak.attribution.by_layer import SPLIT, layer_names
from concept_trak.attribution.state import by_path
from concept_trak.audit.aggregate import AggregateResult, AggregateTask, AggregateWorker
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.gram import (
    GramWorker,
    SolveResult,
    SolveWorker,
    expected_grams,
    gram_task,
    solve_task,
    stored_query,
)
from concept_trak.audit.gram_tree import GramTree, gram_tree
from concept_trak.audit.heavy_groups import heavy_groups
from concept_trak.audit.layer_scores import LayerScores, SplitTask, SplitWorker, end_keys
from concept_trak.audit.mapper import Mapper, Stopped, serial
from concept_trak.audit.prepare import Prepared
from concept_trak.audit.query_features import MethodQuery, QueryWorker
from concept_trak.audit.rejects import FILE as REJECTS
from concept_trak.audit.rejects import RejectsWorker, reasons, rejects_task, too_many_rejects, write_rejects
from concept_trak.audit.results import Tally
from concept_trak.audit.retrieval_ranks import graded_concepts, retrieval_metrics
from concept_trak.audit.score import ScoreWorker, score_tasks
from concept_trak.audit.shown_samples import ShownSample, ShowTask, ShowWorker
from concept_trak.store.audit_files import ListedFile
from concept_trak.store.compaction import RecordGatherer, committed
from concept_trak.store.consistency import ExpectedGram
from concept_trak.store.identity import FeatureSet
from concept_trak.store.queries import write_query
from concept_trak.store.records import Record

INLINE_AT_MOST = 200  # pictures in a page of one file; with more, it takes seconds to load
MOST_REJECTS = 0.05


@dataclass
class AuditRun:
    """One audit under way.

    Args:
        prepared: the audit, with its plan and its queries.
        mapper: runs the tasks of a stage.
        line: takes one line of text about the progress.
        most_rejects: share of the planned samples, 0 ... 1, that may be rejected before the run stops.
        counters: returns the counts of each stage, for metrics.json.
    """

    prepared: Prepared
    mapper: Mapper = serial
    line: Callable[[str], None] = print
    most_rejects: float = MOST_REJECTS
    counters: Callable[[], dict[str, Any]] = dict
    computed: dict[str, int] = field(default_factory=dict)
    """By method, the samples whose shards this run computed."""
    listed: dict[str, ListedFile] = field(default_factory=dict)
    """What workers wrote of the audit, by name: the manifest lists it without reading it."""

    def map(self, stage: str, worker: type[Any], tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """(task, result) of every task of a stage, as they finish."""
        return self.mapper(stage, worker, self.prepared.work, tasks) if tasks else iter(())

    def featurize(self) -> dict[str, list[Record]]:
        """The records of every shard for every method; the missing shards are computed now."""
        p = self.prepared
        names, planned = [shard.name for shard in p.plan], [shard.planned for shard in p.plan]
        # Methods that differ in their queries alone share one feature set, which the first of them computes.
        sets = {f: committed(p.store, f, planned) for f in dict.fromkeys(p.work.features.values())}
        records = {m: sets[features] for m, features in p.work.features.items()}
        missing = self._missing(records)
        self.computed = {m: sum(task.shard.rows for task in missing if m in task.methods) for m in records}
        self._announce(records, missing)
        rejected = {m: sum(r.rejected for r in by_shard.values()) for m, by_shard in records.items()}
        gatherers = {m: RecordGatherer(p.store, features) for m, features in p.work.features.items()}
        for task, result in self.map("featurize", FeaturizeWorker, missing):
            for method, record in zip(task.methods, result.records, strict=True):
                records[method][task.shard.name] = record
                rejected[method] += record.rejected
                gatherers[method].add(record)
                self._check_rejects(method, rejected[method], records[method])
        for method, by_shard in records.items():
            gatherers[method].finish()
            self._check_rejects(method, sum(r.rejected for r in by_shard.values()), by_shard)
        return {m: [by_shard[name] for name in names] for m, by_shard in records.items()}

    def _missing(self, records: dict[str, dict[str, Record]]) -> list[FeaturizeTask]:
        """The shards to compute; methods with the same states are computed together."""
        first, p = dict[FeatureSet, str](), self.prepared
        own = [m for m, features in p.work.features.items() if first.setdefault(features, m) == m]
        together = [
            (tuple(m for m in methods if shard.name not in records[m]), shard)
            for methods in by_path({m: p.config.methods[m].train for m in own})
            for shard in p.plan
        ]
        return [FeaturizeTask(methods, shard) for methods, shard in together if methods]

    def sum_grams(self, records: dict[str, list[Record]]) -> dict[str, tuple[ExpectedGram, ...]]:
        """By method the Grams that a solve adds; those that are missing, and what they need, are summed now."""
        p, tree = self.prepared, gram_tree(self.prepared.plan)
        methods = {features: method for method, features in reversed(p.work.features.items())}
        missing = {m: tree.missing(self._existing_grams(features)) for features, m in methods.items()}
        for level in range(len(tree.levels)):
            tasks = [gram_task(m, node, records[m]) for m, levels in missing.items() for node in levels[level]]
            for _ in self.map("gram", GramWorker, [task for task in tasks if task.records or task.children]):
                pass
        return {method: self._top(tree, method, parts) for method, parts in records.items()}

    def _existing_grams(self, features: FeatureSet) -> Callable[[str], bool]:
        names = set(self.prepared.store.names(features.grams))
        return lambda node: features.gram(node) in names

    def _top(self, tree: GramTree, method: str, parts: Sequence[Record]) -> tuple[ExpectedGram, ...]:
        if top := expected_grams(tree.top, parts):
            return top
        raise Stopped(f"no sample has a feature for {method}: all were rejected ({reasons(parts)})", 3)

    def query(self) -> dict[tuple[str, str], MethodQuery]:
        """phi_q and the pictures of every concept for every method."""
        results = self.map("query", QueryWorker, list(self.prepared.queries))
        return {(query.method, query.concept): query for _, result in results for query in result.queries}

    def solve(
        self,
        queries: dict[tuple[str, str], MethodQuery],
        records: dict[str, list[Record]],
        grams: dict[str, tuple[ExpectedGram, ...]],
    ) -> dict[str, SolveResult]:
        """z of every concept by method, written to `queries/`."""
        p, concepts = self.prepared, self.prepared.config.concepts
        tasks = [
            solve_task(m, top, [queries[m, c.name] for c in concepts], records[m], p.config.damping == "auto")
            for m, top in grams.items()
        ]
        solutions = {result.method: result for _, result in self.map("solve", SolveWorker, tasks)}
        self._list(solution.file for solution in solutions.values())
        for method, solution in solutions.items():
            for i, concept in enumerate(concepts):
                write_query(p.audit, stored_query(solution, i, queries[method, concept.name]))
        return solutions

    def score(self, records: dict[str, list[Record]]) -> Tally:
        """The tally of every score; with `scores=all`, every score is in the store as well."""
        p = self.prepared
        plan = p.plan if p.config.aggregates or graded_concepts(p.config) else ()
        heavy = heavy_groups(p.store, p.config.data, p.data, self.mapper) if p.config.aggregates else ""
        tasks = [task for m, parts in records.items() for task in score_tasks(m, parts, plan, heavy)]
        tally = Tally(p.config.top)
        for _, result in self.map("score", ScoreWorker, tasks):
            tally.add(result)
            self._list(result.files)
        return tally

    def measure(self, records: dict[str, list[Record]], tally: Tally) -> dict[str, dict[str, dict[str, float]]]:
        """AP, P@10 and recall@carriers of every ranking whose concept has a truth, by methods that rank anything."""
        ranked = {method for (method, _), ends in tally.ends.items() if ends.top}
        records = {method: parts for method, parts in records.items() if method in ranked}
        tables = {m: tuple(task.first for task in score_tasks(m, parts)) for m, parts in records.items()}
        samples = {m: sum(record.rows for record in parts) for m, parts in records.items()}
        return retrieval_metrics(self.prepared.config, tables, samples, tally.carriers, self.map)

    def _list(self, files: Iterable[ListedFile]) -> None:
        self.listed |= {file.name: file for file in files}

    def aggregate(self, records: dict[str, list[Record]]) -> dict[str, AggregateResult]:
        """By method, the groups (source, label, word) that the page shows; {} with `aggregates=false`."""
        if not self.prepared.config.aggregates:
            return {}
        tasks = [AggregateTask(m, tuple(task.first for task in score_tasks(m, parts))) for m, parts in records.items()]
        results = {result.method: result for _, result in self.map("aggregate", AggregateWorker, tasks)}
        self._list(file for result in results.values() for file in result.files)
        return results

    def show(self, tally: Tally, copied: bool = True) -> dict[str, ShownSample]:
        """Captions and labels of every sample at an end, and pictures of those the page shows. With `copied`, the store
        gets a copy of every image that is read from the data."""
        plan = {shard.name: shard for shard in self.prepared.plan}
        ids_of = dict[str, set[str]]()
        for _, sample, shard in tally.entries():
            ids_of.setdefault(shard, set()).add(sample)
        pictured, files = self._pictured(tally), self.in_files(tally)
        tasks = [
            ShowTask(
                shard=plan[name],
                ids=tuple(sorted(ids)),
                pictured=frozenset(ids & pictured),
                resolution=self.prepared.resolution,
                files=files,
                copied=copied,
            )
            for name, ids in ids_of.items()
        ]
        samples = dict[str, ShownSample]()
        for _, result in self.map("look", ShowWorker, tasks):
            samples |= {sample.sample_id: sample for sample in result.samples}
            self._list(result.files)
        return samples

    def _pictured(self, tally: Tally) -> set[str]:
        """The samples whose pictures the page shows."""
        count = self.prepared.config.shown
        return {e[1] for ends in tally.ends.values() for e in ends.top[:count] + ends.bottom[:count]}

    def in_files(self, tally: Tally) -> bool:
        """Whether the report is a folder, with pictures as files, and not one page that holds everything."""
        kind = self.prepared.config.report
        return kind == "folder" or (kind == "auto" and len(self._pictured(tally)) > INLINE_AT_MOST)

    def split(self, tally: Tally) -> LayerScores:
        """Every score at an end of a ranking, split by layer; empty if the projector mixes layers."""
        p = self.prepared
        if p.config.projector.kind not in SPLIT:
            return LayerScores()
        sizes = tuple(p.sizes.items())
        tasks = [SplitTask(method, shard, own, sizes) for (method, shard), own in end_keys(p.config, tally).items()]
        parts = {
            (task.method, *key): scores
            for task, result in self.map("joint", SplitWorker, tasks)
            for key, scores in zip(task.keys, result.scores, strict=True)
        }
        return LayerScores(layer_names(p.sizes), parts)

    def gather_rejects(self, records: dict[str, list[Record]], data: Mapping[str, Any]) -> None:
        """Every rejected sample in one table with the facts about the data; a worker writes it unless it is empty."""
        p, task = self.prepared, rejects_task(records, data)
        if not any(task.records.values()):
            write_rejects(p.store, p.audit, task)
        elif p.store.size(p.audit.name(REJECTS)) is None:
            for _ in self.map("rejects", RejectsWorker, [task]):
                pass

    def _check_rejects(self, method: str, rejected: int, records: Mapping[str, Record]) -> None:
        if rejected > self.most_rejects * self.prepared.samples:
            counted = f"{rejected} of {self.prepared.samples} samples were rejected for {method}"
            raise too_many_rejects(self.prepared.audit, method, list(records.values()), counted, self.most_rejects)

    def _announce(self, records: dict[str, dict[str, Record]], missing: Sequence[FeaturizeTask]) -> None:
        first_of = {features: m for m, features in reversed(self.prepared.work.features.items())}
        for method, by_shard in records.items():
            first = first_of[self.prepared.work.features[method]]
            left = sum(1 for task in missing if first in task.methods)
            what = f"{left} to compute" if left else "no gradient work"
            done = f"{len(by_shard)} of {len(self.prepared.plan)} shards are done"
            shared = f", shared with {first}" if first != method else ""
            self.line(f"features   {method}: {done}, {what}{shared}")
