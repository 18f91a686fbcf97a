"""The paths of a query's samples, walked once for all methods whose query sides share their states.

Such methods differ in their norm or their direction, as `concept_trak` and `fit_trak`. The path of `sampling` leads on
to the picture that the model draws from the same noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.features import Features, compute_features_together, discard_report
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import UNGUIDED, resolve_query
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import PathEnd, finish, generate


@dataclass(frozen=True)
class QueryFeatures:
    """The features of a query for methods whose query sides share their states.

    Attributes:
        features: of every sample, by method in their order.
        probe: the states.
        ends: where the paths ended, for some consecutive samples at a time.
    """

    features: tuple[Features, ...]
    probe: Probe
    ends: tuple[PathEnd, ...]


def query_features(
    denoiser: Denoiser,
    projector: Projector,
    methods: Sequence[Method],
    concept: Concept,
    batch: Batch,
    size: int,
    workspace: Workspace | None = None,
    report: Callable[[float], None] = discard_report,
) -> QueryFeatures:
    """The feature of every sample of a query, for one or more methods. Equal query sides are computed once.

    Args:
        methods: methods whose query sides have one `path`, so that they share every state and its forward pass.
        batch: the result of `query_batch`.
        size: samples computed at a time; it does not change the features.
        report: as of `features.compute_features_together`.
    """
    parts, ends, specs = [], [], []
    for start in range(0, len(batch.ids), size):
        rows, specs = batch.rows(slice(start, start + size)), []
        for method in methods:  # the images that the first of them generates serve all
            resolved, rows = resolve_query(denoiser, method, concept, rows)
            specs.append(resolved.query_spec)
        different = list(dict.fromkeys(specs))
        part = compute_features_together(denoiser, projector, different, rows, concept.seed, workspace, report)
        parts.append([part.features[different.index(spec)] for spec in specs])
        ends.append(part.end)
    joined = (Features(*map(torch.cat, zip(*of_method, strict=True))) for of_method in zip(*parts, strict=True))
    return QueryFeatures(tuple(joined), specs[0].probe, tuple(ends))


def query_images(
    denoiser: Denoiser, concept: Concept, query: QueryFeatures, count: int
) -> Float[Tensor, "images c *space"]:
    """The images of the first samples of a query: what the model generates for them without guidance.

    What the query's paths have computed of them is not computed again.

    Args:
        query: the result of `query_features`.
        count: number of images, at least 1.
    """
    parts = list[Tensor]()
    for end in query.ends:
        if (missing := count - sum(map(len, parts))) > 0:
            parts.append(_images(denoiser, concept, query.probe, end.rows(slice(0, missing))))
    return torch.cat(parts)


def _images(denoiser: Denoiser, concept: Concept, probe: Probe, end: PathEnd) -> Tensor:
    batch = end.state.batch
    if batch.x_0 is not None:
        return batch.x_0
    if probe.path == UNGUIDED.path:
        return finish(denoiser, end, UNGUIDED, concept.seed)
    return generate(denoiser, batch, UNGUIDED, concept.seed)
