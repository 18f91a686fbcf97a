"""How well projected scores agree with unprojected ones, and what each projection costs: one table.

    python -m tests.benchmarks.projection                       # the demo's audit with fit_trak
    python -m tests.benchmarks.projection --method concept_trak --rows 96

The truth is float64 throughout: identity features of the demo's images and concepts, of which scores need only the
inner products. Every projector is given the same gradients, and its features are rounded as they are stored (float16
with a scale). Agreement is Spearman's correlation over the training images, of the concept where it is least; damped
scores are held against damped ones with the same lambda / tr(K). Cost is the processor time of a worker's own
`features`, in float32, above that of one number a sample.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.method import METHODS, FeatureSpec, Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import query_batch, resolve_query
from concept_trak.config import AuditConfig
from concept_trak.data.decode import decode_image
from concept_trak.data.image import center_crop, to_tensor
from tests.benchmarks.agreement import correlation
from tests.benchmarks.ours import BESIDE
from tests.benchmarks.work import MODELS, ROOT, SEED, Task, Work, batched, one_thread, opened
from tests.configured import configure

DAMPINGS = (float("inf"), 100.0, 1.0)  # infinite: the plain inner product
WIDTHS = {
    "sketch": (512, 1024, 2048, 4096, 8192, 16384),
    "kronecker": (512, 1024, 2048, 4096, 8192, 16384),
    "mask": (512, 1024, 2048, 4096, 8192, 16384),
    "rademacher": (512, 2048),
}
HEAD = "| projector | k | bytes / sample | CPU-ms / sample | plain | damping 100 | damping 1 |\n" + "|--:" * 7 + "|"


def main() -> None:
    asked = _asked()
    one_thread()
    method = METHODS[asked.method]
    truth, shapes = _truth(method, asked.rows)
    cost = _costs(method, [(kind, dim) for kind in WIDTHS for dim in WIDTHS[kind]], asked.rounds)
    lines = []
    for kind, dim in cost:
        each = [_agreement(truth, asked.rows, shapes, Projector(kind, dim, seed)) for seed in range(asked.seeds)]
        stored, least = 2 * dim + BESIDE, torch.tensor(each).mean(0).tolist()
        lines.append({"kind": kind, "k": dim, "bytes": stored, "cpu_ms": 1e3 * cost[kind, dim], "least": least})
        print(_line(lines[-1]), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{asked.method}.json").write_text(json.dumps({"rows": asked.rows, "lines": lines}, indent=1))
    (asked.out / f"{asked.method}.md").write_text("\n".join([HEAD, *map(_line, lines)]) + "\n")
    print(asked.out / f"{asked.method}.md")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.projection")
    parser.add_argument("--method", choices=list(METHODS), default="fit_trak")
    parser.add_argument("--rows", type=int, default=320, help="training images, the demo's first ones")
    parser.add_argument("--seeds", type=int, default=3, help="projections of each kind and k that are averaged over")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each, of which the least counts")
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks/projection")
    return parser.parse_args()


def _line(found: dict) -> str:
    agreement = " | ".join(f"{value:.3f}" for value in found["least"])
    return f"| {found['kind']} | {found['k']} | {found['bytes']} | {found['cpu_ms']:.2f} | {agreement} |"


def _work(method: Method, precision: str, rows: int) -> Work:
    """The demo's images as `rows` samples of a task with all its parameters."""
    model, task = replace(MODELS["demo"], batch=16), Task(method.train, method.unit, ".")
    denoiser = opened(model, task.parameters, precision)
    at = range(0, rows, model.batch)
    batches = [batched(denoiser, model, task, first, min(model.batch, rows - first)) for first in at]
    cast = [replace(b, x_0=None if b.x_0 is None else b.x_0.to(denoiser.dtype)) for b in batches]
    return Work(task, denoiser, tuple(cast))


def _truth(method: Method, rows: int) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    """Unprojected float64 features of the images, then of the demo's concepts, and the parameters' shapes."""
    work, identity = _work(method, "float64", rows), Projector("identity")
    made = [
        compute_features(work.denoiser, identity, FeatureSpec(method.train, method.unit, over=method.over), b, SEED).phi
        for b in work.batches
    ]
    phi = torch.cat([*made, _queries(work.denoiser, method)])
    assert phi.dtype == torch.float64
    return phi, {name: tuple(p.shape) for name, p in work.denoiser.parameters.items()}


def _queries(d: Denoiser, method: Method) -> Tensor:
    """phi_q of the demo's concepts, as `query_features.py` makes it."""
    found = []
    for concept in configure(AuditConfig, "demo", ["--config-name", "demo"]).concepts:
        image = Path(ROOT / concept.image).read_bytes() if concept.image else b""
        pixels = to_tensor(center_crop(decode_image(image), d.resolution))[None] if image else None
        batch, total = query_batch(d, concept, pixels), 0
        for i in range(0, len(batch.ids), 8):
            side, part = resolve_query(d, method, concept, batch.rows(slice(i, i + 8)))
            total = total + compute_features(d, Projector("identity"), side.query_spec, part, concept.seed).phi.sum(0)
        found.append(total / len(batch.ids))
    return torch.stack(found)


def _agreement(truth: Tensor, n: int, shapes: dict[str, tuple[int, ...]], projector: Projector) -> list[float]:
    """At each damping, the least of the concepts' correlations."""
    phi = torch.cat([projector(part) for part in _by_name(truth, shapes)])
    scale = phi[:n].norm(dim=1, keepdim=True)
    scale[scale == 0] = 1  # an image whose states all count nothing: its feature is 0, and so are its scores
    rounded = torch.cat([(phi[:n] / scale).half().double() * scale, phi[n:]])
    pairs = zip(_scores(truth, n, projector.dim), _scores(rounded, n, projector.dim), strict=True)
    return [min(correlation(a.numpy(), b.numpy()) for a, b in zip(x.T, y.T, strict=True)) for x, y in pairs]


def _by_name(phi: Tensor, shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, Tensor]]:
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    for rows in phi.split(16):
        cut = zip(shapes.items(), rows.split(sizes, 1), strict=True)
        yield {name: part.reshape(len(rows), *shape) for (name, shape), part in cut}


def _scores(phi: Tensor, n: int, k: int) -> list[Tensor]:
    """[n, m] at each damping, by (Phi Phi^T + lambda I)^-1 Phi q; lambda as for features of k numbers."""
    inner, asked = phi[:n] @ phi[:n].T, phi[:n] @ phi[n:].T
    eye, mean = torch.eye(n, dtype=phi.dtype), inner.diagonal().sum() / k
    return [asked if d == float("inf") else torch.linalg.solve(inner + d * mean * eye, asked) for d in DAMPINGS]


def _costs(method: Method, kinds: Sequence[tuple[str, int]], rounds: int) -> dict[tuple[str, int], float]:
    """CPU-seconds a sample above `mask` with k = 1: the least of rounds that take turns, the first not counted."""
    work, least, bare = _work(method, "float32", 16), {}, ("mask", 1)
    for number in range(rounds + 1):
        for kind in (bare, *kinds):
            start = time.process_time()
            compute_features(
                work.denoiser,
                Projector(*kind),
                FeatureSpec(method.train, method.unit, over=method.over),
                work.batches[0],
                SEED,
            )
            spent = (time.process_time() - start) / work.n
            least[kind] = min(least.get(kind, spent), spent) if number else spent
    return {kind: least[kind] - least[bare] for kind in kinds}


if __name__ == "__main__":
    main()
