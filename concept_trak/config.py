"""What a run can be told: one typed, frozen dataclass, the same for the command line, the workers and the saved audit.

Each field's meaning, unit and range stand under it, once. Values are checked when a configuration is made, before
anything starts.
"""

from dataclasses import dataclass, field

from concept_trak.concept import Concept
from concept_trak.data.config import DataConfig
from concept_trak.method import METHODS, Method
from concept_trak.projector import Projector


def _one_of(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise ValueError(f"{key}={value!r}; expected one of: {', '.join(known)}")


def _at_least(key: str, value: float | int, least: float | int) -> None:
    if value < least:
        raise ValueError(f"{key}={value}; expected at least {least}")


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
    sample needs (`room.py`). Not part of a feature's identity."""

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
class ClusterConfig:
    kind: str = "local"
    """serial (this process), local (Ray on this machine) or ray (an existing cluster)."""
    address: str = "auto"
    """ray: the cluster's address."""
    workers: int = 0
    """0: as many as fit."""
    cpus: float = 1.0
    """Cores, and torch threads, a worker owns."""
    gpus: float = 0.0
    memory: int = 0
    """Bytes a worker asks the scheduler for; 0 asks for nothing."""
    price: float = 0.0
    """Of one worker for an hour, in any currency: what `preflight` reckons the cost with."""
    shared_store: bool = False
    """ray: says that a `file` store is one shared folder on every node."""

    def __post_init__(self) -> None:
        _one_of("cluster.kind", self.kind, "serial", "local", "ray")
        _at_least("cluster.workers", self.workers, 0)
        _at_least("cluster.cpus", self.cpus, 0.01)
        _at_least("cluster.price", self.price, 0)


@dataclass(frozen=True)
class BudgetConfig:
    rejects: float = 0.05
    """Share of the planned samples that may be rejected before the run stops (exit 3)."""
    infrastructure: int = 10
    """Times one shard may lose its worker, node or storage before the run stops (exit 4)."""
    memory: int = 3
    """Times one shard may run out of memory, at half the batch each time."""
    application: int = 2
    """Times one shard is tried again when its own work fails."""
    lease: float = 3600.0
    """Seconds one attempt, or the building of a worker, may take. Who takes longer hangs: it is killed, and the shard
    done elsewhere, which counts as infrastructure. An hour is six times what a shard should take, so what hangs costs
    an hour and not the night. Raise it where shards honestly take longer, as on CPUs; 0 waits for ever. Not with
    cluster=serial."""

    def __post_init__(self) -> None:
        _at_least("budget.rejects", self.rejects, 0)
        _at_least("budget.lease", self.lease, 0)


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
    interval: float = 10.0
    """Seconds between two words about progress: lines where there is no terminal, and progress.json everywhere."""
    preflight: bool = False
    """Only load everything, run two samples and one query end to end, and print what the whole run will take."""
    keep_states: bool = False
    """Whether inverted states are kept in the store (states/), so that other parameters, projectors and seeds skip the
    inversion. Bytes: samples x states x size of x_t."""
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        _one_of("scores", self.scores, "top", "all")
        _one_of("report", self.report, "auto", "file", "folder")
        _at_least("top", self.top, 1)
        if self.damping <= 0:
            raise ValueError(
                f"damping={self.damping}; expected a positive number, relative to the mean eigenvalue of K"
            )
        names = [c.name for c in self.concepts]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"concepts: {', '.join(sorted(twice))} is named twice; give each its own name")
        for concept in self.concepts:
            if missing := set(concept.truth) - set(self.data.label_columns):
                raise ValueError(
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
                raise ValueError(f"{key} is not set; expected something like {example}")
        return self
