"""What a benchmark compares: its settings, the models with what they were trained on, and each one's audit.

Settings that are other settings with something changed: a study's rows, and its runs.

A variant is a mapping that names the row it comes from and holds the fields that differ, nested as in the row:

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
from concept_trak.data.benchmarks.synthetic import labels_of, write_synthetic
from concept_trak.data.benchmarks.two_factors import pair_caption
from concept_trak.evaluation.retrieval import TRUTHS, Cell, cell_concept, cells
from concept_trak.evaluation.training.settings import TrainConfig

# What a model's grades depend on; other settings are no reason to compute them again.
GRADING = ("methods", "rows", "queries", "each", "pairs", "truth", "unsaid", "dampings", "parameters", "projector")


def build_variants(given: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that `given` describes, each from one of `rows`.

    Raises:
        UserError: a variant that names no row, or changes a field that there is not; the message names the variant.
    """
    return {name: _variant(name, change, rows) for name, change in given.items()}


@dataclass(frozen=True)
class BenchmarkConfig:
    store: str = "results/benchmark"
    """A folder: features, grades, and the data sets drawn for it."""
    models: tuple[str, ...] = ("assets/demo",)
    """Folders that `jobs.train` wrote; each says in training.json what it was trained on."""
    methods: dict[str, Method] = field(default_factory=dict)
    """Rows to compare; empty is every row of the table."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows given as one of those with some fields changed: {fit_at_300: {row: fit_trak, train: {times: [300]}}}."""
    rows: int = 2000
    """Training samples scored, the first of each model's training set."""
    queries: int = 32
    """Queries per cell."""
    each: int = 1
    """Trajectories that make one query."""
    pairs: tuple[str, ...] = ()
    """Captions of the pairs asked about; empty is all."""
    truth: str = "both"
    """What counts as found: the image shows the factor (shown), its caption says it (said), or both."""
    unsaid: str = ""
    """A factor that the captions of the scored samples leave out; for models that were trained with such captions."""
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, float("inf"))
    parameters: str = r"\.(weight|bias)$"
    projector: Projector = field(default_factory=Projector)
    batch: int = 50
    name: str = "benchmark"
    """The folder of the tables and the page, below `benchmarks/`."""
    reference: str = "fit_trak"
    """The method that every other is measured against."""

    def __post_init__(self) -> None:
        if self.queries < 2:
            raise UserError(
                f"queries={self.queries}; expected at least 2: the damping is chosen on the even ones, and the numbers "
                "are taken over the odd ones"
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
            raise UserError(f"reference={self.reference!r} is none of the methods compared: {', '.join(rows)}")


def load_train_config(path: str) -> TrainConfig:
    """What a model was trained on, as its folder says."""
    file = Path(path) / "training.json"
    if not file.is_file():
        raise UserError(f"models: {path} has no training.json; expected a folder that `python -m jobs.train` wrote")
    try:
        return build(TrainConfig, {"out": path, **json.loads(file.read_text())["settings"]})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"models: {file} is not what `python -m jobs.train` writes: {error}; train it again") from None


def compared_methods(config: BenchmarkConfig) -> dict[str, Method]:
    """The methods compared, by name: rows, then their variants."""
    rows = config.methods or METHODS
    return rows | build_variants(config.variants, rows)


def require_known_pairs(config: BenchmarkConfig, made: TrainConfig) -> None:
    """That every pair asked about is one of the model's data set, so that its models share their cells."""
    known = [pair_caption(*pair) for pair in made.kinds.all_pairs]
    if unknown := [pair for pair in config.pairs if pair not in known]:
        raise UserError(f"pairs: {unknown[0]!r} is no pair of {made.set}; expected some of: {', '.join(known)}")


def require_captions(config: BenchmarkConfig, made: TrainConfig) -> None:
    """That the model was trained with captions like those it is graded with."""
    if config.unsaid and (made.dropped == 0 or config.unsaid not in made.kinds.columns):
        raise UserError(
            f"unsaid={config.unsaid}: {made.out} was trained on {made.set} with dropped={made.dropped:g}; expected "
            f"{' or '.join(made.kinds.columns)}, and a model trained with captions that lose a factor (dropped=0.15)"
        )


def benchmark_cells(config: BenchmarkConfig, made: TrainConfig) -> list[Cell]:
    return [cell for cell in cells(made.kinds) if not config.pairs or pair_caption(*cell.pair) in config.pairs]


def write_scored_samples(config: BenchmarkConfig, made: TrainConfig) -> str:
    """The folder of the scored samples, the first that the model was trained on; written if it is not there."""
    notes = [made.set, str(made.drawing_seed), f"{made.wrong:g}", str(config.rows)]
    notes += [f"{made.resolution}px"] if made.resolution else []
    notes += [f"no-{config.unsaid}"] if config.unsaid else []
    folder = f"{config.store}/data/{'-'.join(notes)}"
    write_synthetic(folder, config.rows, made.drawing_seed, made.kinds, 4, made.side, 0, made.wrong, config.unsaid)
    return folder


def benchmark_audit(config: BenchmarkConfig, path: str, made: TrainConfig) -> AuditConfig:
    """The audit that computes a model's features: its training set, every cell as a concept."""
    kinds, empty = made.kinds, made.dropped > 0
    samples, truth = config.queries * config.each, config.truth if made.wrong else "shown"
    concepts = tuple(cell_concept(c, kinds, empty, samples, truth) for c in benchmark_cells(config, made))
    negative = (
        {} if empty else {"negative": "other_label", "combinations": tuple(pair_caption(*p) for p in kinds.all_pairs)}
    )
    audit = AuditConfig(
        store=config.store,
        model=ModelConfig(path, parameters=config.parameters, batch=config.batch, **negative),
        data=DataConfig(
            write_scored_samples(config, made),
            id_column="id",
            label_columns=labels_of(kinds, made.wrong),
            shard_rows=250,
        ),
        methods=compared_methods(config),
        projector=config.projector,
        concepts=concepts,
    )
    settings = plain_values(replace(config, methods=compared_methods(config), variants={}))
    what = [{key: settings[key] for key in GRADING}, path]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return replace(audit, audit=f"{made.set}-{made.seed}-{digest}")


def _variant(name: str, given: Mapping[str, Any], rows: Mapping[str, Method]) -> Method:
    if name in rows:
        raise UserError(f"variants.{name}: a row has this name; choose another")
    if (row := str(given.get("row", ""))) not in rows:
        near = difflib.get_close_matches(row, rows, 1, 0.5)
        raise UserError(
            f"variants.{name}.row={row!r} is not known" + (f" (did you mean {near[0]}?)" if near else "")
            + f"; expected one of: {', '.join(rows)}"
        )  # fmt: skip
    try:
        return build(Method, with_changes(method_settings(rows[row]), variant_change(given)))
    except UserError as error:
        raise UserError(f"variants.{name}: {error}") from None


def variant_change(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant changes, without the row it comes from."""
    return {key: value for key, value in given.items() if key != "row"}


def with_changes(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the entries of `change`, which may be nested in the same way; lists are replaced whole."""
    nested = {k: with_changes(values.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in change.items()}
    return {**values, **nested}


def change_text(change: Mapping[str, Any]) -> str:
    """A change as the command line would say it: "train.times=[300] unit=False"."""
    return " ".join(_words(change))


def _words(change: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={list(value) if isinstance(value, tuple) else value}"
