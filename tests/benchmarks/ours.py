"""This library, through its public function: the only place of the benchmark that calls it."""

from dataclasses import replace

import torch

from concept_trak.attribution.features import compute_features
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import FeatureSpec
from concept_trak.attribution.projector import Projector
from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import SEED, Work

BESIDE = 8  # bytes a row has beside its feature: a weight and a scale in float32


def build(work: Work, kind: str, dim: int) -> Round:
    """Features as a worker makes them, stored as float16; kind "" and dim 0 are the default projector's own."""
    own = Projector()
    projector = Projector(kind or own.kind, dim or own.dim)
    workspace = Workspace()  # as a worker, which makes its tables once

    def round() -> Output:
        task, made = work.task, []
        for batch in work.batches:
            made.append(
                compute_features(
                    work.denoiser,
                    projector,
                    FeatureSpec(task.probe, task.unit, over=task.over, exponent=task.exponent),
                    batch,
                    SEED,
                    workspace,
                ).phi
            )
        phi = torch.cat(made)
        return Output(phi, stored=2 * phi.shape[1] + BESIDE)

    return round


def build_capture(work: Work) -> Round:
    """Per-sample gradients and their norms at every state, and one coordinate of them, so that nothing is projected."""
    capture = build(replace(work, task=replace(work.task, unit=True)), "mask", 1)

    def round() -> Output:
        capture()
        return Output()

    return round
