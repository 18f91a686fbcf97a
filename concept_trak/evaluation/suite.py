"""The settings of a benchmark, and the data and the audit of each model that follow from them.

A variant is a row of the table with some fields changed. It is a mapping with the name of the row and the fields that
differ, nested as in the row:

    fit_at_300: {row: fit_trak, train: {times: [300]}}
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.method import METHODS, Method, method_settings
from concept_trak.attribution.projector import Projector
from concept_trak.config import AuditConfig, DataConfig, ModelConfig, build, plain_values
from concept_trak.data.benchmarks.synthetic import EACH, labels_of, write_synthetic
from concept_trak.data.benchmarks.two_factors import pair_caption
from concept_trak.evaluation.retrieval import TRUTHS, Cell, cell_concept, cells
from concept_trak.evaluation.training.settings import TrainConfig

# The settings that decide a model's grades. A change of any other setting keeps grades that exist.
GRADING = (
    "methods",
    "rows",
    "queries",
    "each",
    "pairs",
    "truth",
    "unsaid",
    "embeddings",
    "dampings",
    "parameters",
    "projector",
)
GRADES = 2
"""The version of the grades, which rises when a grade is added, so that grades without it are computed again."""


def build_variants(variants: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Method]) -> dict[str, Method]:
    """The methods of `variants`, each made from one of `rows`.

    Raises:
        UserError: a variant names no row, or changes a field that does not exist; the message names the variant.
    """
    return {name: _variant(name, variant, rows) for name, variant in variants.items()}


@dataclass(frozen=True)
class BenchmarkConfig:
    store: str = "results/benchmark"
    """A folder for features, grades, and the synthetic data sets."""
    models: tuple[str, ...] = ("assets/demo",)
    """Folders that `jobs.train` wrote, each with its training.json."""
    methods: dict[str, Method] = field(default_factory=dict)
    """Rows to compare; empty means every row of the table."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows with some fields changed: {fit_at_300: {row: fit_trak, train: {times: [300]}}}."""
    rows: int = 2000
    """Number of scored training samples: the first ones of each model's training set."""
    queries: int = 32
    """Queries per cell."""
    each: int = 1
    """Trajectories per query."""
    pairs: tuple[str, ...] = ()
    """Captions of the pairs whose factors are the concepts; empty means all pairs."""
    truth: str = "both"
    """A sample is relevant if its image shows the factor (shown), its caption names it (said), or both (both)."""
    unsaid: str = ""
    """A factor that captions of the scored samples leave out, or `each`: every caption leaves out one, by a coin. The
    models must have been trained with such captions."""
    embeddings: dict[str, str] = field(default_factory=dict)
    """Rankings by the embedding of pictures, each with a local folder of weights: {clip: /weights/clip}."""
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, float("inf"))
    parameters: str = r"\.(weight|bias)$"
    projector: Projector = field(default_factory=Projector)
    batch: int = 50
    name: str = "benchmark"
    """The folder of the tables and the page, below `benchmarks/`."""
    reference: str = "fit_trak"
    """The method that every other is compared with."""

    def __post_init__(self) -> None:
        if self.queries < 2:
            raise UserError(
                f"queries={self.queries}; expected at least 2: the even queries decide the damping, and the results "
                "come from the odd ones"
            )
        if self.each < 1:
            raise UserError(f"each={self.each}; expected at least 1")
        if not self.dampings or min(self.dampings) <= 0:
            raise UserError(f"dampings={list(self.dampings)}; expected at least one positive number, or inf")
        if self.truth not in TRUTHS:
            raise UserError(f"truth={self.truth!r}; expected one of: {', '.join(TRUTHS)}")
        if not self.models:
            raise UserError("models is empty; expected folders that `python -m jobs.train` wrote")
        if self.reference not in (rows := compared_methods(self)):
            raise UserError(f"reference={self.reference!r} is not one of the compared methods: {', '.join(rows)}")


def load_train_config(path: str) -> TrainConfig:
    """The settings of a model's training, from the training.json in its folder.

    Raises:
        UserError: the file is missing or was not written by `jobs.train`.
    """
    file = Path(path) / "training.json"
    if not file.is_file():
        raise UserError(f"models: {path} has no training.json; expected a folder that `python -m jobs.train` wrote")
    try:
        return build(TrainConfig, {"out": path, **json.loads(file.read_text())["settings"]})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"models: {file} is not a file of `python -m jobs.train` ({error}); train the model again"
        ) from None


def compared_methods(config: BenchmarkConfig) -> dict[str, Method]:
    """The compared methods, by name: rows, then their variants."""
    rows = config.methods or METHODS
    return rows | build_variants(config.variants, rows)


def require_known_pairs(config: BenchmarkConfig, training: TrainConfig) -> None:
    """Check that the model's data set has every pair of the configuration, so that its models share their cells.

    Raises:
        UserError: the data set lacks a pair; the message names the first one.
    """
    pairs = [pair_caption(*pair) for pair in training.kinds.all_pairs]
    if unknown := [pair for pair in config.pairs if pair not in pairs]:
        raise UserError(f"pairs: {unknown[0]!r} is not a pair of {training.set}; expected some of: {', '.join(pairs)}")


def require_captions(config: BenchmarkConfig, training: TrainConfig) -> None:
    """Check that the model was trained with captions like those of the scored samples.

    Raises:
        UserError: captions leave a factor out, and did not in training.
    """
    expected = (*training.kinds.columns, EACH)
    if config.unsaid and (training.dropped == 0 or config.unsaid not in expected):
        raise UserError(
            f"unsaid={config.unsaid}: {training.out} was trained on {training.set} with dropped={training.dropped:g}; "
            f"expected {' or '.join(expected)}, and a model trained with captions that lose a factor "
            "(dropped=0.15)"
        )


def benchmark_cells(config: BenchmarkConfig, training: TrainConfig) -> list[Cell]:
    """Both factors of every pair of the configuration."""
    return [cell for cell in cells(training.kinds) if not config.pairs or pair_caption(*cell.pair) in config.pairs]


def write_scored_samples(config: BenchmarkConfig, training: TrainConfig) -> str:
    """Write the scored samples, which are the first of the training set, unless they exist; return their folder."""
    notes = [training.set, str(training.drawing_seed), f"{training.wrong:g}", str(config.rows)]
    notes += [f"{training.resolution}px"] if training.resolution else []
    notes += [f"unsaid-{config.unsaid}"] if config.unsaid else []
    folder = f"{config.store}/data/{'-'.join(notes)}"
    write_synthetic(
        folder,
        config.rows,
        training.drawing_seed,
        training.kinds,
        files=4,
        resolution=training.side,
        wrong=training.wrong,
        unsaid=config.unsaid,
    )
    return folder


def benchmark_audit(config: BenchmarkConfig, path: str, training: TrainConfig) -> AuditConfig:
    """The audit that computes a model's features: its data are the training set, and every cell is a concept."""
    kinds, empty = training.kinds, training.dropped > 0
    samples, truth = config.queries * config.each, config.truth if training.wrong else "shown"
    combinations = tuple(pair_caption(*pair) for pair in kinds.all_pairs)
    negative = {} if empty else {"negative": "other_label", "combinations": combinations}
    return AuditConfig(
        store=config.store,
        audit=f"{training.set}-{training.seed}-{_grading_digest(config, path)}",
        model=ModelConfig(path, parameters=config.parameters, batch=config.batch, **negative),
        data=DataConfig(
            write_scored_samples(config, training),
            id_column="id",
            label_columns=labels_of(kinds, training.wrong, config.unsaid),
            shard_rows=250,
        ),
        methods=compared_methods(config),
        projector=config.projector,
        concepts=tuple(cell_concept(cell, kinds, empty, samples, truth) for cell in benchmark_cells(config, training)),
    )


def _grading_digest(config: BenchmarkConfig, path: str) -> str:
    settings = plain_values(replace(config, methods=compared_methods(config), variants={}))
    grading = [{key: settings[key] for key in GRADING}, path, GRADES]
    return hashlib.sha256(json.dumps(grading, sort_keys=True).encode()).hexdigest()[:12]


def _variant(name: str, variant: Mapping[str, Any], rows: Mapping[str, Method]) -> Method:
    if name in rows:
        raise UserError(f"variants.{name}: a row has this name; choose another name")
    if (row := str(variant.get("row", ""))) not in rows:
        near = difflib.get_close_matches(row, rows, 1, 0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"variants.{name}.row={row!r} is not known{hint}; expected one of: {', '.join(rows)}")
    try:
        return build(Method, with_changes(method_settings(rows[row]), variant_change(variant)))
    except UserError as error:
        raise UserError(f"variants.{name}: {error}") from None


def variant_change(variant: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a variant changes, without the name of its row."""
    return {key: value for key, value in variant.items() if key != "row"}


def with_changes(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the entries of `change`, merged at every depth; a list replaces the whole list."""
    nested = {k: with_changes(values.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in change.items()}
    return {**values, **nested}


def change_text(change: Mapping[str, Any]) -> str:
    """A change as on a command line: "train.times=[300] unit=False"."""
    return " ".join(_assignments(change))


def _assignments(change: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={list(value) if isinstance(value, tuple) else value}"
