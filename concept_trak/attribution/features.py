"""The loop over states that computes features: phi(z) = P sum_{s in trajectory(z)} a(s) u(J(s)^T v(s)).

v is the direction, and J(s)^T v pulls it back to the parameters. u divides by a norm if the method has one. a(s) in
[0, 1] is the weight of the state (1 for every direction except `caption_fit`). P is the projector.

Letters: b samples, k features.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser, Prediction, negative_count, negatives
from concept_trak.attribution.direction import DIRECTIONS, WEIGHTS
from concept_trak.attribution.gradients.accumulate import NEGLIGIBLE, FeatureSum, feature_sums, norm_group
from concept_trak.attribution.gradients.factors import Gradients
from concept_trak.attribution.gradients.pull_back import SampleGradients, pull_back, pull_back_naive, times_each
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import FeatureSpec, Method
from concept_trak.attribution.numerics import at_least_float32
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.repeated_texts import RepeatedTexts
from concept_trak.attribution.state import Batch, Direction, Probe, State
from concept_trak.attribution.trajectory import TRAJECTORIES, PathEnd, walk


class Features(NamedTuple):
    """One projected gradient per sample.

    Attributes:
        phi: on the model's device, at least float32.
        weight: what the finished score of each sample is multiplied by; on the CPU.
        states: the number of states at which each sample has a direction, on the CPU. A sample with 0 has no feature.
    """

    phi: Float[Tensor, "b k"]
    weight: Float[Tensor, " b"]
    states: Int[Tensor, " b"]


class PathFeatures(NamedTuple):
    """Several kinds of features on the same states, and where the samples' paths ended."""

    features: list[Features]
    end: PathEnd


def discard_report(samples: float) -> None:
    """A report that goes nowhere."""


def training_batch(
    denoiser: Denoiser,
    method: Method,
    ids: Sequence[str],
    captions: Sequence[str],
    x_0: Float[Tensor, "b c *space"],
    cond: Condition,
    seed: int,
    negative_texts: RepeatedTexts | None = None,
) -> Batch:
    """Training samples with the negatives that the method compares their captions with.

    Args:
        x_0: the images as the model denoises them (`denoiser.to_latent`).
        cond: the conditions of the captions (`denoiser.encode`), and of the conditioning images if there are any. A
            negative has the sample's own image, unless the model's empty condition has none (IP-Adapter).
        seed: with a sample's id, draws its negatives where the model has more than one.
        negative_texts: of the worker, so that the same negatives of many batches are encoded once.
    """
    encode = (negative_texts or RepeatedTexts(denoiser)).encode
    turns = range(negative_count(denoiser, method.train.negatives))
    first, *others = [cond | negatives(denoiser, ids, captions, seed, turn, encode) for turn in turns]
    return Batch(ids=tuple(ids), cond=cond, negative=first, x_0=x_0, others=tuple(others))


def train_features(
    denoiser: Denoiser,
    projector: Projector,
    methods: Sequence[Method],
    batch: Batch,
    seed: int,
    workspace: Workspace | None = None,
    report: Callable[[float], None] = discard_report,
) -> list[Features]:
    """The training side of methods with one path, for one batch: a `Features` on the CPU for each method.

    Args:
        batch: as `training_batch` makes it.
        seed: with a sample's id, draws the noise of its states.
        report: as of `compute_features_together`.
    """
    specs = [method.train_spec for method in methods]
    results = compute_features_together(denoiser, projector, specs, batch, seed, workspace, report).features
    return [Features(features.phi.cpu(), features.weight, features.states) for features in results]


def reject_reasons(features: Features) -> list[tuple[str, str] | None]:
    """Why a sample has no usable feature: (`not_finite` or `no_direction`, an explanation), or None if it has one."""
    finite = torch.isfinite(features.phi).all(1).cpu() & torch.isfinite(features.weight).cpu()
    reasons: list[tuple[str, str] | None] = []
    for is_finite, states in zip(finite.tolist(), features.states.tolist(), strict=True):
        if not is_finite:
            reasons.append(("not_finite", "its gradient has an infinite or undefined number"))
        elif states == 0:
            reasons.append(
                (
                    "no_direction",
                    "its condition equals the model's negative at every state, so its reward has no direction",
                )
            )
        else:
            reasons.append(None)
    return reasons


def compute_features(
    denoiser: Denoiser,
    projector: Projector,
    spec: FeatureSpec,
    batch: Batch,
    seed: int,
    workspace: Workspace | None = None,
    report: Callable[[float], None] = discard_report,
) -> Features:
    """The features of every sample of a batch; they do not depend on its other samples.

    Args:
        seed: with a sample's id, draws the noise of its states.
        workspace: of the worker, so that tables and memory serve many batches.
        report: as of `compute_features_together`.
    """
    return compute_features_together(denoiser, projector, [spec], batch, seed, workspace, report).features[0]


def compute_features_together(
    denoiser: Denoiser,
    projector: Projector,
    specs: Sequence[FeatureSpec],
    batch: Batch,
    seed: int,
    workspace: Workspace | None = None,
    report: Callable[[float], None] = discard_report,
) -> PathFeatures:
    """Several kinds of features on the same states: one forward at each state for all, one backward for each probe.

    Equals `features_naive` up to rounding. All probes must have one `path`.

    Args:
        report: called after each of n states with b / n, the samples of the batch that are finished since the last one.
    """
    workspace = workspace or Workspace()
    probes = list(dict.fromkeys(spec.probe for spec in specs))
    assert len({probe.path for probe in probes}) == 1, "features on different paths share no states"
    directions = [partial(_direction, denoiser, probe) for probe in probes]
    with feature_sums(projector, denoiser.parameters, len(batch.ids), len(specs), workspace) as sums:
        totals = [_Total(spec, total, len(batch.ids)) for spec, total in zip(specs, sums, strict=True)]

        pulled: list[SampleGradients] = []

        def visit(state: State) -> Prediction:
            # The gradients of a state are kept until those of the next exist: memory that is all freed at once goes
            # back to the system, and taking it again costs 5 % of the time.
            nonlocal pulled
            pulled = pull_back(denoiser, state, directions, workspace)
            for total in totals:
                total.add(state, pulled[probes.index(total.spec.probe)])
            report(len(batch.ids) / len(probes[0].states))
            return pulled[0].prediction

        end = walk(TRAJECTORIES[probes[0].trajectory](denoiser, batch, probes[0], seed), visit)
        return PathFeatures([total.features() for total in totals], end)


def _direction(denoiser: Denoiser, probe: Probe, state: State, prediction: Prediction) -> Direction:
    return DIRECTIONS[probe.direction](denoiser, state, prediction, probe)


class _Total:
    """The sum of one kind of feature over the states visited so far, with the weights and the usable states."""

    def __init__(self, spec: FeatureSpec, gradients: FeatureSum, b: int) -> None:
        self.spec, self._gradients = spec, gradients
        self._weight, self._states = torch.zeros(()), torch.zeros(b, dtype=torch.int64)

    def add(self, state: State, pulled: SampleGradients) -> None:
        self._states += (pulled.direction.v.flatten(1) != 0).any(1).cpu()
        self._weight = self._weight + at_least_float32(WEIGHTS[self.spec.weight](state, pulled.prediction)).cpu()
        factor = pulled.direction.fit.to(pulled.scale.dtype)
        # A norm divides the scale out again.
        factor = factor * pulled.scale if self.spec.norm == "none" else factor
        self._gradients.add(pulled.gradients, factor, self.spec.norm, self.spec.exponent)

    def features(self) -> Features:
        weight = self._weight if self.spec.weight != "one" else torch.ones_like(self._weight)
        return Features(self._gradients.phi(), weight, self._states)


def features_naive(
    denoiser: Denoiser, projector: Projector, spec: FeatureSpec, batch: Batch, seed: int
) -> Float[Tensor, "b k"]:
    """phi by the formula: one sample, one state and one plain backward pass at a time.

    It is the naive twin of `compute_features`: slow, without layer rules, sums of factors or tables. Tests compare the
    two.
    """
    rows, direction = [], partial(_direction, denoiser, spec.probe)
    for i in range(len(batch.ids)):
        total = {name: torch.zeros_like(p)[None] for name, p in denoiser.parameters.items()}
        for state in TRAJECTORIES[spec.probe.trajectory](denoiser, batch.rows(slice(i, i + 1)), spec.probe, seed):
            gradients, _, at = pull_back_naive(denoiser, state, direction)
            unit = _unit_naive(gradients, spec.norm, spec.exponent)
            total = {name: total[name] + times_each(unit[name], at.fit) for name in total}
        rows.append(projector(total))
    return torch.cat(rows)


def _unit_naive(gradients: Gradients, norm: str, exponent: float) -> Gradients:
    """Each gradient divided by the tempered norm of its group; a group that is rounding of the whole becomes 0."""
    if norm == "none":
        return gradients
    whole = torch.cat([g.flatten(1) for g in gradients.values()], 1).norm()
    groups: dict[str, list[Tensor]] = {}
    for name, g in gradients.items():
        groups.setdefault(norm_group(name, norm), []).append(g.flatten(1))
    norms = {group: torch.cat(members, 1).norm() for group, members in groups.items()}
    zero = {group: n <= NEGLIGIBLE * whole for group, n in norms.items()}
    divisors = {group: n**exponent * whole ** (1 - exponent) for group, n in norms.items()}
    rates = {group: torch.zeros_like(n) if zero[group] else 1 / n for group, n in divisors.items()}
    return {name: rates[norm_group(name, norm)] * g for name, g in gradients.items()}
