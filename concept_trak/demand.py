"""What a run will need, from its settings alone: printed before anything is computed."""

from dataclasses import dataclass

from concept_trak.config import AuditConfig
from concept_trak.denoiser import Denoiser
from concept_trak.rehearsal import feature_bytes


@dataclass(frozen=True)
class Demand:
    """`parameters` attributable numbers in `tensors` tensors; bytes of one sample's feature and of one's gradient."""

    parameters: int
    tensors: int
    feature: int
    gradient: int


def demand(config: AuditConfig, denoiser: Denoiser) -> Demand:
    """A gradient counts whole, in the model's precision: layers keep theirs as products of two thin matrices where that
    is smaller, so a worker needs at most this for each sample of a batch, beside the model and its activations.
    """
    chosen = denoiser.parameters.values()
    parameters = sum(p.numel() for p in chosen)
    gradient = sum(p.numel() * p.element_size() for p in chosen)
    return Demand(parameters, len(chosen), feature_bytes(config, parameters), gradient)


def readable(size: float | int) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
