"""The settings of an audit as typed, frozen dataclasses, for the command line, the workers and the saved audit.

The docstring under a field has its meaning, unit and range. Values are checked when a configuration is made, before
anything starts.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.damping import DEFAULT_DAMPING
from concept_trak.attribution.method import METHODS, Method
from concept_trak.attribution.projector import Projector
from concept_trak.config_errors import message_of, refuse_unknown_keys

T = TypeVar("T")
MOST_TOP, DAMPING = 1_000_000, (1e-12, 1e12)


def _one_of(key: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise UserError(f"{key}={value!r}; expected one of: {', '.join(choices)}")


def _at_least(key: str, value: float | int, least: float | int, most: float | int = 2**63) -> None:
    if not least <= value <= most:
        raise UserError(f"{key}={value}; expected at least {least}" + f", at most {most}" * (most < 2**63))


@dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """A diffusers pipeline directory, a Hub id, a URL, or a single original checkpoint; safetensors only."""
    weights: str = ""
    """A full fine-tune of the denoising network, which replaces the base's: a folder, or one safetensors file."""
    lora: str = ""
    """A LoRA: a safetensors file, or a folder as diffusers or peft saves it."""
    embeddings: tuple[str, ...] = ()
    """Textual inversions (safetensors). Prompts and captions may then use their tokens."""
    parameters: str = "all"
    """Attributable parameters: all, attention, cross_attention, self_attention_out, lora (the adapter's matrices), or a
    pattern of names."""
    negative: str = "empty"
    """The model's negative: empty (trained with dropped captions or classes) or other_label."""
    combinations: tuple[str, ...] = ()
    """other_label: the captions or classes that the negative is drawn from; empty is all classes."""
    resolution: int = 0
    """Side of the images in pixels; 0 is the model's own. Set it if the model was fine-tuned at another."""
    device: str = "auto"
    """auto (a GPU if the worker owns one), cpu, or cuda."""
    offload: str = "auto"
    """Whether the text encoders and the VAE are on the GPU only while they encode: auto (if they would take more than a
    fifth of its memory), always or never. It does not change a feature."""
    precision: str = "float32"
    """Precision of the networks: float32, bfloat16, float16 or float64; states, sums and norms are at least float32. A
    guided inversion amplifies rounding, so compare before you run such a row in bfloat16."""
    batch: int = 32
    """Samples that a worker computes together; halved when memory runs out. 0 measures how many fit into free memory
    (`attribution/batch_size.py`). It does not change a feature."""

    def __post_init__(self) -> None:
        _one_of("model.negative", self.negative, "empty", "other_label")
        _at_least("model.resolution", self.resolution, 0, 65536)
        _one_of("model.device", self.device, "auto", "cpu", "cuda")
        _one_of("model.offload", self.offload, "auto", "always", "never")
        _one_of("model.precision", self.precision, "float32", "bfloat16", "float16", "float64")
        _at_least("model.batch", self.batch, 0)


@dataclass(frozen=True)
class FeatureConfig:
    dtype: str = "float16"
    """Type of the stored phi: float16, float32, or int8 (steps of a row's largest entry / 127); a row has a scale."""
    encoding: str = "binary"
    """binary (read at memory speed), or list (float32) for SQL arrays."""

    def __post_init__(self) -> None:
        _one_of("feature.dtype", self.dtype, "float16", "float32", "int8")
        _one_of("feature.encoding", self.encoding, "binary", "list")


@dataclass(frozen=True)
class WorkerSettings:
    """The resources that one worker may use on its machine. They change no number."""

    cpus: float = 1.0
    """Cores that the worker owns."""
    gpus: int = 0
    """GPUs of the worker, one of them perhaps in part; `model.device=auto` then uses them."""
    memory: int = 0
    """Bytes of the machine's memory that the worker may take; 0 is the free memory divided by `neighbours`."""
    neighbours: int = 1
    """Number of workers that share the machine; 0 is as many as its cores hold."""

    @property
    def threads(self) -> int:
        """Number of torch threads."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class DataConfig:
    uri: str = ""
    """A file, or a folder of them: Parquet as Hugging Face `datasets` writes it, WebDataset tars, or images."""
    format: str = "auto"
    """auto (by the endings of the files), or one of concept_trak/data/: parquet, webdataset, folder, latents."""
    files: str = ""
    """Only files whose name matches this pattern, such as train-*.parquet; with a slash, files whose path below `uri`
    matches it, such as sub/**/*.jpg. The others are left out and counted."""
    split: str = ""
    """One of several splits: train, validation or test, as in the names of files and folders; all reads every split.
    Needed only if there are several."""
    image_column: str = "image"
    conditioning_image_column: str = ""
    """For a ControlNet or an IP-Adapter: the column of its images, such as conditioning_image; in a tar an ending:
    conditioning.png. Empty, for an IP-Adapter: the sample's own image."""
    caption_column: str = "caption"
    """In a tar: txt, cls, or a field of the json. In a folder: txt (a file beside the image), label (the folder's
    name), or a column of its metadata.jsonl, .csv or .parquet. Empty for an unconditional model."""
    other_captions: tuple[str, ...] = ()
    """More columns with captions. A column may also hold a list of them."""
    captions: str = "first"
    """Of several captions: first (that is not empty; the whole text), join (all, with a comma), one (drawn, always the
    same for an id); of the lines of a text: first_line, or one_line (drawn). Or class: the model was trained on
    classes, numbers or names. whole is another word for first."""
    id_column: str = ""
    """A column of unique ids (in a tar `__key__` is one); without one an id is made from source and row."""
    label_columns: tuple[str, ...] = ()
    """Columns that are copied to the results. `truth` of a concept may name them."""
    crop: str = "center"
    """center, or random: a position drawn by the id, so that it is the same in every run."""
    enlarge: bool = True
    """Whether an image smaller than the crop is enlarged, as the training scripts of diffusers do, or a reject."""
    transparency: str = "white"
    """What replaces transparent pixels: white, black, checker (a checkerboard), or drop (the colours that the file has
    there, as with a plain `convert("RGB")` in training scripts)."""
    most_pixels: int = 128_000_000
    """Width times height above which an image is a reject; decoding takes up to 9 bytes of memory for each pixel."""
    buckets: tuple[tuple[int, int], ...] = ()
    """[height, width] of each size of a model that was trained at several aspect ratios; an image is cropped to the
    nearest ratio. Empty is the square of the model's resolution."""
    frames: int = 0
    """For a video model: the frames of a clip, which is an animated GIF, WebP, PNG or AVIF file, or is encoded already.
    0 reads images, and of an animation the first frame."""
    spread_frames: bool = False
    """Whether the frames of a clip are spread evenly over its file, or are the first ones."""
    shard_rows: int = 64
    """Rows of a shard: aim at ten minutes of work and at most 90 MB of features. A new feature set fixes it."""

    def __post_init__(self) -> None:
        if self.captions == "whole":
            object.__setattr__(self, "captions", "first")
        _one_of("data.crop", self.crop, "center", "random")
        _one_of("data.captions", self.captions, "first", "first_line", "one_line", "join", "one", "class")
        _one_of("data.transparency", self.transparency, "white", "black", "checker", "drop")
        _at_least("data.shard_rows", self.shard_rows, 1)
        _at_least("data.frames", self.frames, 0, 65536)
        if self.spread_frames and not self.frames:
            raise UserError("data.spread_frames=true spreads the frames of a clip; set data.frames to their number")
        _at_least("data.most_pixels", self.most_pixels, 1)
        if wrong := [b for b in self.buckets if min(b) < 8 or b[0] % 8 or b[1] % 8]:
            raise UserError(f"data.buckets: {list(wrong[0])} is no size; expected [height, width], multiples of 8")


@dataclass(frozen=True)
class AuditConfig:
    """One audit: a model, its training data, concepts and methods. Raises UserError for a value that is not allowed."""

    store: str = "results"
    """The folder or object-store URL of features and results."""
    audit: str = ""
    """The audit's name; empty is the UTC time. @hourly, @daily, @weekly and @monthly name it after the current hour,
    day, week (2026-W48) or month. An audit of the same name is resumed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    methods: dict[str, Method] = field(default_factory=dict)
    """Rows of the table of methods, by name."""
    projector: Projector = field(default_factory=Projector)
    concepts: tuple[Concept, ...] = ()
    """A list; on the command line also a .json or .yaml file with one."""
    damping: float | str = DEFAULT_DAMPING
    """lambda = damping tr(K) / k; auto: by method, that at which a concept's samples agree best (docs/methods.md)."""
    seed: int = 0
    """Seed of the noise of the training side."""
    top: int = 100
    """Number of the best and of the worst samples kept for each concept, method and form."""
    scores: str = "top"
    """top: keep only those; all: keep every score as Parquet, which precision and AP need."""
    aggregates: bool = True
    """Whether scores are summed by source, label and caption word, as Parquet and on the page."""
    since: str = ""
    """An earlier audit of the store to compare with, on the page and as `jobs.diff` does; latest is the newest finished
    one that has a question in common, if there is one."""
    shown: int = 24
    """Images of each end of a ranking on the page."""
    report: str = "auto"
    """file: one page with everything; folder: a light page, with a folder of concept pages, thumbnails and the original
    images; auto: folder for more than 200 images."""
    keep_states: bool = False
    """Whether to keep inverted states in the store (states/), so that other parameters, projectors and seeds skip the
    inversion. They take samples x states x size of x_t bytes."""
    feature: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        _one_of("scores", self.scores, "top", "all")
        _one_of("report", self.report, "auto", "file", "folder")
        _at_least("top", self.top, 1, MOST_TOP)
        _at_least("shown", self.shown, 0)
        fixed = 1.0 if self.damping == "auto" else self.damping
        if isinstance(fixed, str) or not DAMPING[0] <= fixed <= DAMPING[1]:  # beyond, float32 holds no solution
            raise UserError(f"damping={fixed!r}; expected auto or a positive number, 1e-12 ... 1e12")
        names = Counter(c.name.lower() for c in self.concepts)  # files and columns of some systems know no case
        if twice := {n for n, count in names.items() if count > 1}:
            raise UserError(f"concepts: {', '.join(sorted(twice))} is named twice; give each its own name")
        for concept in self.concepts:
            if missing := set(concept.truth) - set(self.data.label_columns):
                raise UserError(
                    f"concept {concept.name!r}: truth names {', '.join(sorted(missing))}, which data.label_columns "
                    f"({', '.join(self.data.label_columns) or 'empty'}) does not; add it there"
                )

    def complete(self) -> "AuditConfig":
        """Check that every setting that a run needs is set; returns itself. Raises UserError, naming a missing one."""
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
    """The dataclass from plain values; unknown keys and wrong types at any depth are refused; a number is text."""
    refuse_unknown_keys(schema)
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise UserError("; ".join(message_of(schema, e) for e in error.errors())) from None


def plain_values(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values, with tuples as lists, as a saved configuration has them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def absolute(path: str) -> str:
    """The absolute address: URLs are unchanged, paths start from the working directory, and `~` is the home folder.

    Raises:
        UserError: it is empty, as after an empty variable, or means nothing on this machine.
    """
    if "://" in path:
        return path
    if not path.strip():
        raise UserError("the path is empty, as after an empty variable of the shell; give a folder, such as results")
    home = os.path.expanduser(path)
    if home.startswith("~") or re.match(r"[A-Za-z]:\\", path):
        what = "a path of Windows" if "\\" in path else "in no home folder that is known"
        raise UserError(f"{path!r} is {what}; give a path of this machine, such as /data/results")
    return str(Path(home).absolute())
