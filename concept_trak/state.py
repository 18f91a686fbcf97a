"""Who is asked (a batch of samples) and where they stand (a state on a trajectory)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from concept_trak.denoiser import Condition, take


@dataclass(frozen=True)
class Batch:
    """Samples with everything a trajectory or a direction may need.

    `x_0` is absent for a query that starts from noise; `without` (the concept's second condition) for training samples.
    """

    ids: tuple[str, ...]
    cond: Condition
    negative: Condition
    x_0: Float[Tensor, "b c h w"] | None = None
    without: Condition | None = None
    others: tuple[Condition, ...] = ()
    """More negatives of each sample, where the model has more than one."""
    path: Float[Tensor, "b states c h w"] | None = None
    """x_t at every state of the inversion, where it is known: it is not made again."""
    target: Float[Tensor, "c h w"] | None = None
    """What a concept's examples have in common: their mean x_0."""
    judge: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, " b"]] | None = None
    """log p(concept | x_0) of each sample, differentiable."""

    def rows(self, rows: slice) -> "Batch":
        return Batch(
            self.ids[rows],
            take(self.cond, rows),
            take(self.negative, rows),
            None if self.x_0 is None else self.x_0[rows],
            None if self.without is None else take(self.without, rows),
            tuple(take(other, rows) for other in self.others),
            None if self.path is None else self.path[rows],
            self.target,
            self.judge,
        )


@dataclass(frozen=True)
class State:
    """`s = (x_t, t, c)` of a batch; `noise` is the eps that makes x_t from x_0 where x_0 is known."""

    batch: Batch
    x_t: Float[Tensor, "b c h w"]
    t: int
    noise: Float[Tensor, "b c h w"] | None = None

    def rows(self, rows: slice) -> "State":
        noise = None if self.noise is None else self.noise[rows]
        return State(self.batch.rows(rows), self.x_t[rows], self.t, noise)

    def at(self, x_t: Tensor) -> "State":
        return replace(self, x_t=x_t)


class Pointed(NamedTuple):
    """A direction at a state: v = dL / d eps_theta, and how much the state counts with each sample, in [0, 1]."""

    v: Float[Tensor, "b c h w"]
    fit: Float[Tensor, " b"]


def required(value: Any, what: str, needed_by: str) -> Any:
    """`value`, or the error that says which probe cannot be answered here and what to choose instead."""
    if value is None:
        raise ValueError(f"{needed_by} needs {what}, which this trajectory or batch does not know; {_REMEDY[what]}")
    return value


_REMEDY = {
    "x_0": "choose forward_noise or ddim_inversion on samples with images.",
    "noise": "choose forward_noise or ddim_inversion.",
    "without": "give the concept a `without_prompt` (or `without_labels`).",
    "target": "give the concept by `examples`.",
    "judge": "give the concept by a `classifier`.",
}
