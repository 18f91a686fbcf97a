"""A batch of samples, a state on a trajectory, and the settings of one side of a method (`Probe`)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, take_rows


@dataclass(frozen=True)
class Batch:
    """Samples with everything that a trajectory or a direction may need. Rows are samples.

    Attributes:
        ids: they key all randomness of a sample.
        cond: the condition of each sample.
        negative: the model's negative for each sample.
        x_0: the clean images; None for a query that starts from noise.
        without: the concept's second condition; None for training samples.
        others: more negatives of each sample, if the model has more than one.
        path: x_t at every state of the inversion, if it is already known.
        target: the mean x_0 of the examples of each sample.
        classifier: returns log p(concept | x_0) of each sample, differentiable.
    """

    ids: tuple[str, ...]
    cond: Condition
    negative: Condition
    x_0: Float[Tensor, "b c *space"] | None = None
    without: Condition | None = None
    others: tuple[Condition, ...] = ()
    path: Float[Tensor, "b states c *space"] | None = None
    target: Float[Tensor, "b c *space"] | None = None
    classifier: Callable[[Float[Tensor, "b c *space"]], Float[Tensor, " b"]] | None = None

    def rows(self, rows: slice) -> "Batch":
        return Batch(
            ids=self.ids[rows],
            cond=take_rows(self.cond, rows),
            negative=take_rows(self.negative, rows),
            x_0=None if self.x_0 is None else self.x_0[rows],
            without=None if self.without is None else take_rows(self.without, rows),
            others=tuple(take_rows(other, rows) for other in self.others),
            path=None if self.path is None else self.path[rows],
            target=None if self.target is None else self.target[rows],
            classifier=self.classifier,
        )


@dataclass(frozen=True)
class State:
    """The state `s = (x_t, t, c)` of a batch. `noise` is (x_t - alpha_t x_0) / sigma_t, or None without an x_0."""

    batch: Batch
    x_t: Float[Tensor, "b c *space"]
    t: int
    noise: Float[Tensor, "b c *space"] | None = None

    def rows(self, rows: slice) -> "State":
        noise = None if self.noise is None else self.noise[rows]
        return State(self.batch.rows(rows), self.x_t[rows], self.t, noise)

    def at(self, x_t: Tensor) -> "State":
        return replace(self, x_t=x_t)


class Direction(NamedTuple):
    """A direction at a state: v = dL / d eps_theta, and the weight a(s) of the state for each sample, in [0, 1]."""

    v: Float[Tensor, "b c *space"]
    fit: Float[Tensor, " b"]


def required(value: Any, what: str, needed_by: str) -> Any:
    """`value`, if it is known.

    Args:
        value: the value, or None.
        what: its name, a key of `_REMEDY`.
        needed_by: the trajectory or direction that needs it.

    Raises:
        UserError: it is None; the message names a probe that does not need it.
    """
    if value is None:
        raise UserError(f"{needed_by} needs {what}, which this trajectory or batch does not know; {_REMEDY[what]}")
    return value


_REMEDY = {
    "x_0": "choose forward_noise or ddim_inversion on samples with images.",
    "noise": "choose forward_noise or ddim_inversion.",
    "without": "give the concept a `without_prompt` (or `without_labels`).",
    "target": "give the concept by `examples`.",
    "classifier": "give the concept by a `classifier`.",
}


def time_grid(points: int) -> list[int]:
    """The DDIM times, floor(linspace(0, 999, points)); with 51 points every fifth from t = 99 to 899 is kept."""
    return [999 * i // (points - 1) for i in range(points)]


@dataclass(frozen=True)
class Probe:
    """One side of a method: a trajectory and a direction, with their settings.

    Raises:
        UserError: a setting is out of its range.
    """

    trajectory: str
    """`forward_noise`, `ddim_inversion` or `sampling`."""
    direction: str
    """A row of `direction.py`."""
    times: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 700, 800, 900)
    """forward_noise: the times of its states, in 1 ... 999."""
    noise: str = "shared"
    """forward_noise: `shared` (one tensor per time for all samples) or `per_sample`."""
    guidance: float = 1.0
    """ddim_inversion, sampling: strength g of classifier-free guidance along the path; 1 is none."""
    points: int = 51
    """ddim_inversion, sampling: points of the DDIM grid from 0 to 999."""
    every: int = 5
    """ddim_inversion, sampling: number of updates from one state to the next."""
    eta: float = 0.0
    """sampling: the eta of DDIM; 0 is deterministic."""
    strength: float = 1.0
    """concept_reward, caption_reward, caption_fit: w, the factor of the difference between the two predictions."""
    negatives: int = 1
    """caption_fit with the negative `other_label`: m, the number of other captions (at most all of them)."""
    doubt: float = 0.25
    """caption_fit: the largest standard error of a fit that is used. A fit is 0 if the picture shows the other caption
    and 1 if it shows its own. Initial weights mostly give 0.4 or more, trained ones 0.2 or less (assets/results.md)
    and weak ones around 0.5 (assets/study.md)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))
        if self.noise not in ("shared", "per_sample"):
            raise UserError(f"noise={self.noise!r}: expected shared or per_sample")
        if not self.times or not all(1 <= t <= 999 for t in self.times):
            raise UserError(f"times={list(self.times)}: expected at least one time in 1 ... 999")
        if self.points < 3 or not 1 <= self.every <= self.points - 2:
            raise UserError(
                f"points={self.points}, every={self.every}: expected points >= 3 and every in 1 ... points - 2"
            )
        if self.negatives < 1:
            raise UserError(f"negatives={self.negatives}: expected at least 1")
        if not 0 < self.doubt < math.inf:
            raise UserError(f"doubt={self.doubt}: expected a positive standard error; 1000 uses every fit")
        if self.eta < 0 or self.strength <= 0:
            raise UserError(f"eta={self.eta}, strength={self.strength}: expected eta >= 0 and strength > 0")

    @property
    def path(self) -> "Probe":
        """This probe without the settings that do not change its states. Probes with equal paths share their states."""
        return replace(self, direction="", strength=1.0, doubt=1.0)

    @property
    def last(self) -> int:
        """Grid index of the last state: the largest multiple of `every` below the last point (45 of 50)."""
        return (self.points - 2) // self.every * self.every

    @property
    def states(self) -> tuple[int, ...]:
        """The times of the states, in rising order."""
        if self.trajectory == "forward_noise":
            return tuple(sorted(self.times))
        return tuple(time_grid(self.points)[self.every : self.last + 1 : self.every])

    @property
    def evaluations(self) -> int:
        """Network evaluations of a sample: a forward pass under one condition counts as one, a backward pass as two."""
        updates = {"forward_noise": 0, "ddim_inversion": self.last, "sampling": self.points - 1 - self.every}
        path = updates[self.trajectory] * (1 if self.guidance == 1 else 2)
        if path:
            path -= len(self.states) - 1  # the evaluation at a state serves the path's next update too
        reward = {"reconstruction_reward": 2, "concept_reward": 1, "caption_reward": 1, "caption_fit": self.negatives}
        return path + len(self.states) * (1 + 2 + reward.get(self.direction, 0))


def by_path(probes: Mapping[str, Probe]) -> list[tuple[str, ...]]:
    """The names of probes in groups that share their states."""
    groups = dict[Probe, list[str]]()
    for name, probe in probes.items():
        groups.setdefault(probe.path, []).append(name)
    return [tuple(names) for names in groups.values()]
