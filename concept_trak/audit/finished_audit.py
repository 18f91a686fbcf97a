"""A finished audit, read back: its rankings, scores, features and settings, each file checked before it is used.

Reading needs pyarrow and numpy only: no torch, no Ray, and no model. A new question (`ask`) needs the model.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.store.codec import decode_blocks
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit, finished_manifest, query_file, scores_file
from concept_trak.store.part import Block, Damaged
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet

if TYPE_CHECKING:
    import concept_trak.audit.answer
    import concept_trak.audit.questions

FORMS, ENDS = ("damped", "plain"), ("top", "bottom")


def open_audit(store: str, audit: str) -> "FinishedAudit":
    """Open the results of a finished audit.

    >>> audit = open_audit("results", "demo")
    >>> audit.concepts, audit.methods
    (('red',), ('concept_trak',))
    >>> audit.top("red", n=2).select(["rank", "sample_id", "score"]).to_pylist()
    [{'rank': 1, 'sample_id': 'img-3', 'score': 3.0}, {'rank': 2, 'sample_id': 'img-2', 'score': 2.0}]

    Args:
        store: the folder or the address that holds the results, as the audit's `store`: `results`, `s3://bucket/results`.
        audit: the audit's name.

    Raises:
        UserError: the store has no such audit, it is not finished, or its manifest is damaged.
        OSError: storage failed.
    """
    address = store if "://" in store else str(Path(store).expanduser().absolute())
    return FinishedAudit(Audit(Store(address), audit))


class FinishedAudit:
    """The results of a finished audit, as Arrow tables.

    The manifest lists every file with its sha256; a file is compared with it each time before it is used, so what this
    returns is what the audit wrote. `to_pandas()` of a table needs pandas.
    """

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        """Where its files are."""
        self.manifest: dict[str, Any] = finished_manifest(audit)
        """The manifest: `audit`, `finished` (when), `settings`, `files` and `parts` with size and sha256."""

    def __repr__(self) -> str:
        return f"open_audit({self.audit.store.uri!r}, {self.audit.id!r})"

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods, sorted."""
        return tuple(sorted(self.settings["methods"]))

    @property
    def concepts(self) -> tuple[str, ...]:
        """The names of the concepts, in the order of the settings."""
        return tuple(concept["name"] for concept in self.settings["concepts"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that decided the outcome, and the fingerprint of each method's features."""
        return yaml.safe_load(self.file("audit.yaml"))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The contents of `metrics.json`: counts, dampings, and average precision where concepts have `truth`."""
        return json.loads(self.file("metrics.json"))

    @property
    def rejects(self) -> pa.Table:
        """The samples without a feature: method, sample_id, source, row, reason, message."""
        return self._table("rejects.parquet")

    def top(
        self,
        concept: str | None = None,
        method: str | None = None,
        form: str | None = "damped",
        end: str = "top",
        n: int | None = None,
    ) -> pa.Table:
        """The samples at one end of the rankings, the most extreme first.

        >>> open_audit("results", "demo").top(end="bottom", n=1)["sample_id"].to_pylist()
        ['img-0']

        Args:
            concept, method: their names; None for all.
            form: `damped` for scores of the method, `plain` for inner products without the curvature, None for both.
            end: `top` for the highest scores, `bottom` for the lowest.
            n: how many of each ranking; None for all that the audit kept (its setting `top`).

        Returns:
            The rows of `top.parquet`: concept, method, form, end, rank (from 1), sample_id, score, percentile (100 for
            the best), caption, source, row, duplicate_of, and the label columns.

        Raises:
            UserError: the audit has no such concept, method, form or end.
            Damaged: the file was altered since the audit finished.
        """
        filters = {"concept": (concept, self.concepts), "method": (method, self.methods)}
        return ranking_rows(self._table("top.parquet"), filters, form, end, n)

    def ask(
        self, concept: Concept | Sequence[Concept], method: str | Sequence[str] = (), top: int = 10
    ) -> "concept_trak.audit.answer.Answer":
        """Rank the samples by a concept that the audit was not run for, with the features that it has.

        The first question loads the audit's model from where it was, and this object keeps it, so later questions are
        faster. If the model has moved, use `audit.questions.Questions`. Needs torch.

        Args:
            concept: one concept, or several with different names, which share one pass over the features.
            method: one or several of the audit's methods; all by default.
            top: number of the best and of the worst samples, at least 1.

        Returns:
            The answer. Its `top(...)` has the arguments and the columns of `top` here, and so has `bottom`. The scores
            are those that an audit with this concept has, to rounding.

        Raises:
            UserError: there is no such method, features are gone, the model is not the one that the features were
                computed with (the message says what differs), or it cannot be asked about the concept.
            Damaged: a file is not the one that the audit was computed from.
        """
        concepts = [concept] if isinstance(concept, Concept) else list(concept)
        return self._questions.ask(concepts, [method] if isinstance(method, str) else list(method), top)

    @cached_property
    def _questions(self) -> "concept_trak.audit.questions.Questions":
        from concept_trak.audit.questions import Questions

        return Questions(self)

    def scores(self, method: str | None = None) -> pa.Table:
        """Every score of one method.

        >>> open_audit("results", "demo").scores().column_names
        ['sample_id', 'red', 'red~plain']

        Args:
            method: its name; None if the audit has a single one.

        Returns:
            One row per sample, in the order of the plan: sample_id, and of each concept a column `<concept>` with the
            damped and `<concept>~plain` with the plain score, float32.

        Raises:
            UserError: the audit did not keep every score (`scores=all`), or has no such method.
            Damaged: a file was altered since the audit finished.
        """
        name = self._method(method)
        files = [scores_file(name, part["shard"]) for part in self.parts(name)]
        if not any(file in self.manifest["files"] for file in files):
            raise UserError(
                f"audit {self.audit.id} kept the ends of its rankings and not every score; run it under another name "
                "with scores=all: it reuses all features"
            )
        return pa.concat_tables([self._table(file) for file in files])

    def features(self, method: str | None = None) -> Iterator[Block]:
        """The features of one method, one row group (16 to 64 MB) at a time, in the order of the plan.

        >>> for block in open_audit("results", "demo").features():
        ...     print(block.ids, block.weight, block.phi().shape)
        ['img-0', 'img-1'] [1. 1.] (2, 8)
        ['img-2', 'img-3'] [1. 1.] (2, 8)

        Args:
            method: its name; None if the audit has a single one.

        Yields:
            Blocks of n rows: `ids`, `weight` [n] and `scale` [n] (float32), and `unit` [n, k], which shares memory with
            the bytes that were read. `phi()` is unit * scale in float32. A score is weight * (phi @ query).

        Raises:
            UserError: the audit has no such method.
            Damaged: a part is not the one that the audit was computed from.
        """
        for part in self.parts(self._method(method)):
            yield from decode_blocks(self._checked(part["name"], part), checked=True)

    def queries(self, concept: str | None = None, method: str | None = None) -> pa.Table:
        """The features of the concepts. A score is the product of one of them with the feature of a sample.

        Args:
            concept, method: their names; None for all.

        Returns:
            One row per concept and method, with phi, solved, lambda and the residual of the solve.

        Raises:
            UserError: the audit has no such concept or method.
            Damaged: a file was altered since the audit finished.
        """
        concepts = self.concepts if concept is None else (_require_one_of("concept", concept, self.concepts),)
        methods = self.methods if method is None else (self._method(method),)
        return pa.concat_tables([self._table(query_file(m, c)) for m in methods for c in concepts])

    def _method(self, method: str | None) -> str:
        if method is None and len(self.methods) == 1:
            return self.methods[0]
        return _require_one_of("method", method, self.methods)

    def parts(self, method: str) -> list[dict[str, Any]]:
        """The manifest's entries of the files with a method's features, in the order of the plan."""
        features = FeatureSet(self.settings["fingerprints"][method])
        parts = {part["name"]: part for part in self.manifest["parts"]}  # methods may share features: listed for each
        return [part for name, part in parts.items() if name == features.part(part["shard"])]

    def _table(self, relative: str) -> pa.Table:
        return read_parquet(self.file(relative))

    def file(self, relative: str) -> bytes:
        """The bytes of one file of the audit, after a comparison with the manifest.

        Args:
            relative: its name below the folder of the audit.

        Raises:
            UserError: the audit has no such file.
            Damaged: the file is gone, or was altered since the audit finished.
        """
        if relative not in self.manifest["files"]:
            raise UserError(f"audit {self.audit.id} has no {relative}: its manifest does not list the file")
        return self._checked(self.audit.name(relative), self.manifest["files"][relative])

    def _checked(self, name: str, listed: Mapping[str, Any]) -> bytes:
        """The bytes of a file, after a comparison with its size and sha256 in the manifest."""
        where = f"{self.audit.store.uri}/{name}"
        try:
            data = self.audit.store.read(name)
        except FileNotFoundError:
            raise Damaged(f"{where} is gone, and audit {self.audit.id} lists it. {REMEDY}") from None
        if (len(data), hashlib.sha256(data).hexdigest()) != (listed["size"], listed["sha256"]):
            raise Damaged(f"{where} was truncated or altered since audit {self.audit.id} finished. {REMEDY}")
        return data


REMEDY = (
    "Expected the file that the audit wrote. `python -m jobs.verify` lists all that is damaged; to have the results "
    "again, run the audit under another name, which reuses all features that are sound."
)


def ranking_rows(
    table: pa.Table,
    filters: Mapping[str, tuple[str | None, Sequence[str]]],
    form: str | None,
    end: str,
    n: int | None,
) -> pa.Table:
    """The rows of `top.parquet` with some values.

    Args:
        table: its rows.
        filters: by column, the value (None for all) and the values there are.
        form, end, n: as `FinishedAudit.top` takes them.

    Raises:
        UserError: a column has no such value.
    """
    for column, (value, choices) in {**filters, "form": (form, FORMS), "end": (end, ENDS)}.items():
        if value is not None:
            table = table.filter(pc.field(column) == _require_one_of(column, value, choices))
    return table if n is None else table.filter(pc.field("rank") <= n)


def _require_one_of(what: str, value: str | None, choices: Sequence[str]) -> str:
    if value is None or value not in choices:
        raise UserError(f"{what}={value!r}: expected one of {', '.join(choices)}")
    return value
