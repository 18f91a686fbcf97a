"""One side of a method, as numbers: which trajectory, which direction, and what both are run with."""

import math
from dataclasses import dataclass, replace


def grid(points: int) -> list[int]:
    """The DDIM times, floor(linspace(0, 999, points)); with 51 points every fifth from t = 99 to 899 is kept."""
    return [999 * i // (points - 1) for i in range(points)]


@dataclass(frozen=True)
class Probe:
    """One side of a method: where to stand and which way to point, with the numbers of both."""

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
    """ddim_inversion, sampling: a state is kept after every so many updates."""
    eta: float = 0.0
    """sampling: DDIM's own stochasticity, 0 is deterministic."""
    strength: float = 1.0
    """concept_reward, caption_reward: w, the guidance that the reward pulls by."""
    negatives: int = 1
    """caption_fit with the negative `other_label`: m, how many other captions (at most as many as there are)."""
    doubt: float = 0.25
    """caption_fit: largest standard error of a fit that counts; a fit is 0 where the picture shows the other caption, 1
    where it shows its own. Initial weights know it to 0.4 or worse, trained ones to 0.2 or better (results.md)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(self.times))
        if self.noise not in ("shared", "per_sample"):
            raise ValueError(f"noise={self.noise!r}: expected shared or per_sample")
        if not self.times or not all(1 <= t <= 999 for t in self.times):
            raise ValueError(f"times={list(self.times)}: expected at least one time in 1 ... 999")
        if self.points < 3 or not 1 <= self.every <= self.points - 2:
            raise ValueError(
                f"points={self.points}, every={self.every}: expected points >= 3 and every in 1 ... points - 2"
            )
        if self.negatives < 1:
            raise ValueError(f"negatives={self.negatives}: expected at least 1")
        if not 0 < self.doubt < math.inf:
            raise ValueError(f"doubt={self.doubt}: expected a positive standard error; 1000 believes every fit")
        if self.eta < 0 or self.strength <= 0:
            raise ValueError(f"eta={self.eta}, strength={self.strength}: expected eta >= 0 and strength > 0")

    @property
    def path(self) -> "Probe":
        """What decides the states: probes with one path can share them."""
        return replace(self, direction="", strength=1.0, doubt=1.0)

    @property
    def last(self) -> int:
        """Index on the grid of the last state kept: the largest multiple of `every` short of pure noise (45 of 50)."""
        return (self.points - 2) // self.every * self.every

    @property
    def states(self) -> tuple[int, ...]:
        """The times of the states, in rising order."""
        if self.trajectory == "forward_noise":
            return tuple(sorted(self.times))
        return tuple(grid(self.points)[self.every : self.last + 1 : self.every])

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample costs: a forward of one condition is one, a backward counts two."""
        updates = {"forward_noise": 0, "ddim_inversion": self.last, "sampling": self.points - 1 - self.every}
        path = updates[self.trajectory] * (1 if self.guidance == 1 else 2)
        if path:
            path -= len(self.states) - 1  # the evaluation at a state serves the path's next update too
        reward = {"reconstruction_reward": 2, "concept_reward": 1, "caption_reward": 1, "caption_fit": self.negatives}
        return path + len(self.states) * (1 + 2 + reward.get(self.direction, 0))
