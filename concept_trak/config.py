"""What a run can be told: one typed, frozen dataclass, the same for the command line, the workers and the saved audit.

Each field's meaning, unit and range stand under it, once. Values are checked when a configuration is made, before
anything starts.

Which training set, and how its rows become samples: the group `data` of a configuration.
"""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS, Method
from concept_trak.attribution.projector import Projector

T = TypeVar("T")


def _one_of(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise UserError(f"{key}={value!r}; expected one of: {', '.join(known)}")


def _at_least(key: str, value: float | int, least: float | int) -> None:
    if value < least:
        raise UserError(f"{key}={value}; expected at least {least}")


@dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """A diffusers pipeline directory, safetensors only."""
    weights: str = ""
    """A full fine-tune of its denoising network, used in place of the base's: a folder, or one safetensors file."""
    lora: str = ""
    """A LoRA beside its weights: a safetensors file, or a folder as diffusers or peft saves it."""
    embeddings: tuple[str, ...] = ()
    """Textual inversions (safetensors), whose tokens texts may then use."""
    parameters: str = "all"
    """Attributable parameters: all, attention, cross_attention, self_attention_out, lora (the adapter's matrices), or a
    pattern of names."""
    negative: str = "empty"
    """The model's negative: empty (trained with dropped captions or classes) or other_label."""
    combinations: tuple[str, ...] = ()
    """other_label: the captions or classes another one is drawn from; empty is all classes."""
    device: str = "auto"
    """auto (a GPU where the worker owns one), cpu, or cuda."""
    precision: str = "float32"
    """What the networks run in: float32, bfloat16, float16 or float64; states, sums and norms are at least float32. A
    guided inversion amplifies rounding, so rows with one should not run in bfloat16 unless you have compared."""
    batch: int = 32
    """Samples at a time on a worker; halved when memory runs out. 0: as many as free memory holds, by what one more
    sample needs (`attribution/batch_size.py`). Not part of a feature's identity."""

    def __post_init__(self) -> None:
        _one_of("model.negative", self.negative, "empty", "other_label")
        _one_of("model.device", self.device, "auto", "cpu", "cuda")
        _one_of("model.precision", self.precision, "float32", "bfloat16", "float16", "float64")
        _at_least("model.batch", self.batch, 0)


@dataclass(frozen=True)
class FeatureConfig:
    dtype: str = "float16"
    """float16, float32, or int8 (in steps of a row's largest entry): how phi is stored, beside a scale per row."""
    encoding: str = "binary"
    """binary (read at memory speed), or list (float32) for SQL arrays."""

    def __post_init__(self) -> None:
        _one_of("feature.dtype", self.dtype, "float16", "float32", "int8")
        _one_of("feature.encoding", self.encoding, "binary", "list")


@dataclass(frozen=True)
class WorkerSettings:
    """What one worker may use of the machine that it runs on; nothing here changes a number."""

    cpus: float = 1.0
    """Cores that the worker owns."""
    gpu: bool = False
    """Whether the worker owns a GPU, which `model.device=auto` then uses."""
    memory: int = 0
    """Bytes of the machine's memory that the worker may take; 0: what is free, divided by `neighbours`."""
    neighbours: int = 1
    """Workers that share the machine; 0: as many as its cores hold."""

    @property
    def threads(self) -> int:
        """Threads of torch."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class DataConfig:
    uri: str = ""
    """A file, or a folder of them: Parquet as Hugging Face `datasets` writes it, WebDataset tars, or images."""
    format: str = "auto"
    """auto (by the endings of the files), or a file of concept_trak/data/ that defines one: parquet, webdataset,
    folder, latents."""
    files: str = ""
    """Only files whose name has this pattern, as train-*.parquet; with a slash, whose path below `uri` has it, as
    sub/**/*.jpg. The others are left out and counted."""
    split: str = ""
    """Which of several splits that lie in one place: train, validation or test, as the names of files and folders have
    it; all reads every one. Needed only where there are several."""
    image_column: str = "image"
    caption_column: str = "caption"
    """In a tar: txt, cls, or a field of the json. In a folder: txt (a file beside the image), label (the folder's
    name), or a column of its metadata.jsonl, .csv or .parquet. Empty where an unconditional model was told nothing."""
    other_captions: tuple[str, ...] = ()
    """More columns with captions. A column may also hold a list of them."""
    captions: str = "first"
    """Of several captions: first (that is not empty; the whole text), join (all, with a comma), one (drawn, always the
    same for an id); of the lines of a text: first_line, or one_line (drawn). Or class: the model was trained on
    classes, numbers or names. whole is another word for first."""
    id_column: str = ""
    """A column of unique ids (in a tar `__key__` is one); without one an id is made from source and row."""
    label_columns: tuple[str, ...] = ()
    """Columns that travel to the results and that `truth` of a concept may name."""
    crop: str = "center"
    """center, or random: a place drawn once for each id, so that it is the same in every run."""
    enlarge: bool = True
    """Whether an image smaller than the crop is enlarged, as the training scripts of diffusers do, or a reject."""
    transparency: str = "white"
    """What is seen through transparent images: white, black, checker (a checkerboard), or drop (the colours that the
    file has there, as training scripts with a plain `convert("RGB")` see them)."""
    most_pixels: int = 128_000_000
    """Width times height above which an image is a reject; decoding takes up to 9 bytes of memory for each pixel."""
    buckets: tuple[tuple[int, int], ...] = ()
    """[height, width] of the sizes that a model of several aspect ratios was trained at: an image is cropped to the
    one nearest to its own ratio. Empty: the square of the model's resolution."""
    shard_rows: int = 64
    """Rows a shard: about ten minutes of work, at most 90 MB of features. Fixed when a feature set is created."""

    def __post_init__(self) -> None:
        if self.captions == "whole":
            object.__setattr__(self, "captions", "first")
        _one_of("data.crop", self.crop, "center", "random")
        _one_of("data.captions", self.captions, "first", "first_line", "one_line", "join", "one", "class")
        _one_of("data.transparency", self.transparency, "white", "black", "checker", "drop")
        _at_least("data.shard_rows", self.shard_rows, 1)
        _at_least("data.most_pixels", self.most_pixels, 1)
        if wrong := [b for b in self.buckets if min(b) < 8 or b[0] % 8 or b[1] % 8]:
            raise UserError(f"data.buckets: {list(wrong[0])} is no size; expected [height, width], multiples of 8")


@dataclass(frozen=True)
class AuditConfig:
    """One audit: a model, its training data, concepts, and the methods that answer."""

    store: str = "results"
    """Where everything lies: a folder or an object-store URL."""
    audit: str = ""
    """Its name; empty is the UTC time; @hourly, @daily, @weekly or @monthly the tick that the time is in (2026-W48). An
    audit of the same name is resumed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    methods: dict[str, Method] = field(default_factory=dict)
    """Rows of the method table by name; several are scored side by side."""
    projector: Projector = field(default_factory=Projector)
    concepts: tuple[Concept, ...] = ()
    damping: float = 100.0
    """lambda = damping tr(K) / k."""
    seed: int = 0
    """Names the noise of the training side."""
    top: int = 100
    """Best and worst samples kept per concept."""
    scores: str = "top"
    """top: only those; all: every score as Parquet, which precision and AP need."""
    aggregates: bool = True
    """Whether scores are summed by source, label and caption word, as Parquet and on the page."""
    since: str = ""
    """An earlier audit of the store to compare with, on the page and as `jobs.diff` does; latest: the newest that is
    finished by then and has a question in common, if there is one."""
    shown: int = 24
    """Images a row on the page."""
    report: str = "auto"
    """file: one page that holds everything; folder: a light page, and beside it one for each concept, thumbnails, and
    the shown images as they lie in the data; auto: folder for more than 200 images."""
    keep_states: bool = False
    """Whether inverted states are kept in the store (states/), so that other parameters, projectors and seeds skip the
    inversion. Bytes: samples x states x size of x_t."""
    feature: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        _one_of("scores", self.scores, "top", "all")
        _one_of("report", self.report, "auto", "file", "folder")
        _at_least("top", self.top, 1)
        if self.damping <= 0:
            raise UserError(f"damping={self.damping}; expected a positive number, relative to the mean eigenvalue of K")
        names = [c.name.lower() for c in self.concepts]  # files and columns of some systems know no case
        if twice := {n for n in names if names.count(n) > 1}:
            raise UserError(f"concepts: {', '.join(sorted(twice))} is named twice; give each its own name")
        for concept in self.concepts:
            if missing := set(concept.truth) - set(self.data.label_columns):
                raise UserError(
                    f"concept {concept.name!r}: truth names {', '.join(sorted(missing))}, which data.label_columns "
                    f"({', '.join(self.data.label_columns) or 'empty'}) does not; add it there"
                )

    def complete(self) -> "AuditConfig":
        """Itself, once nothing that a run needs is missing."""
        for key, value, example in (
            ("model.path", self.model.path, "model.path=assets/demo"),
            ("data.uri", self.data.uri, "data.uri=s3://bucket/train"),
            ("method", self.methods, f"method={'|'.join(METHODS)}"),
            ("concepts", self.concepts, "concepts=[{name: red, prompt: a red square, without_prompt: a square}]"),
        ):
            if not value:
                raise UserError(f"{key} is not set; expected something like {example}")
        return self


def build(schema: type[T], values: Any) -> T:
    """The dataclass from plain values; unknown keys and wrong types at any depth are refused."""
    _strict(schema)
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise UserError("; ".join(_sentence(schema, e) for e in error.errors())) from None


def _strict(schema: type, seen: set[type] | None = None) -> None:
    """Tell pydantic to refuse unknown keys in a dataclass and in every dataclass it holds."""
    seen = set() if seen is None else seen
    if schema in seen:
        return
    seen.add(schema)
    schema.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    for known in dataclasses.fields(schema):
        for inner in (known.type, *get_args(known.type)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                _strict(inner, seen)


def _sentence(schema: type, error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        *parents, wrong = error["loc"]
        known = [f.name for f in dataclasses.fields(_at(schema, parents))]
        near = difflib.get_close_matches(str(wrong), known, 1, 0.5)
        return f"unknown key {place}" + (f" (did you mean {near[0]}?)" if near else f"; known: {', '.join(known)}")
    if error["type"] == "missing":
        return f"{place} is missing; give it a value"
    if error["type"] == "value_error":
        if not isinstance(refusal := error["ctx"]["error"], UserError):
            raise refusal  # a bug in a check of ours, which pydantic takes for the user's mistake
        return str(refusal)
    return f"{place}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _at(schema: type, path: Sequence[Any]) -> type:
    """The dataclass that stands at a path of keys and list positions."""
    for part in path:
        if isinstance(part, int) or part not in {f.name for f in dataclasses.fields(schema)}:
            continue  # a position in a list, or a name in a mapping: the dataclass was entered with its field
        kind = next(f.type for f in dataclasses.fields(schema) if f.name == part)
        inner = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and dataclasses.is_dataclass(k)]
        schema = inner[0]
    return schema


def plain_values(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values, tuples as lists: what a saved configuration holds."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def absolute(path: str) -> str:
    """URLs as they are, relative paths from here, and `~` as the home folder.

    Raises:
        UserError: it is empty, as after an empty variable, or the home of a user who is not known.
    """
    if "://" in path:
        return path
    if not path.strip():
        raise UserError("the path is empty, as after an empty variable of the shell; give a folder, such as results")
    home = os.path.expanduser(path)
    if home.startswith("~"):
        raise UserError(f"{path!r} begins with ~, and no such home folder is known; write ./{path} for a folder here")
    return str(Path(home).absolute())
