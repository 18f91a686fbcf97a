"""Speed and memory on one GPU: one table for each network, in two calls that take less than fifteen minutes together.

    python -m tests.benchmarks.gpu --minutes 4               # Stable Diffusion 1.x's UNet, 64 x 64 latents, bfloat16
    python -m tests.benchmarks.gpu --minutes 8 --size flux   # Flux.1's transformer, frozen, a LoRA of rank 16
    python -m tests.benchmarks.gpu --minutes 8 --size sdxl   # Stable Diffusion XL's, 128 x 128 latents
    python -m tests.benchmarks.gpu --size tiny --device cpu  # the same lines in seconds: that it runs, no speed

The network has random weights, for speed does not depend on them. Every line is a floor (the passes that the
mathematics needs), a worker's own `features`, the authors' way or a worker's whole `stage`, at the largest batch that
memory holds; a line gives samples a second, the operations of its passes, as counted, over a matrix product's measured
ceiling, and peak memory. A stage reads JPEG files and commits its part; `waiting` is the share of its time in which the
device runs nothing. `channels-last` and `compile` are what a run could be set to. A compiled network does not give the
inputs and outputs of its layers, so it is measured where nothing is pulled back: on the path of a guided inversion,
which is two thirds of concept_trak. Last comes how far the scores of the chosen precision agree with those of float32,
for Flux at 256 pixels.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from concept_trak.attribution.denoiser import Denoiser, attributable
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.state import Probe
from concept_trak.models import load_model
from tests.benchmarks import authors, floors, ours, work
from tests.benchmarks.agreement import spearman
from tests.benchmarks.gpu_models import SIZES, random_batch, save
from tests.benchmarks.gpu_stage import measured_stage
from tests.benchmarks.seat import Answer
from tests.benchmarks.work import ROOT, Task, Work

ROW = Probe("forward_noise", "denoising_error", times=(500,))
STATES = replace(METHODS["concept_b"].train, times=(300, 700))
ATTENTION, ALL, LORA = r"attn2", work.LAYERS, "lora"
NAMES = {ATTENTION: "cross attention", ALL: "all", LORA: "LoRA"}
AGREEING, QUERIES = 16, 8


@dataclass(frozen=True)
class Line:
    """What is measured: `passes` alone (a floor), `forward` (no gradient), `features` with so many columns, a worker's
    `stage`, or the way of the `authors`, with the coordinates of `mask`."""

    what: str
    parameters: str
    probe: Probe
    kind: str = ""
    dim: int = 4096
    option: str = ""


LINES = (
    Line("forward", ATTENTION, ROW),
    Line("forward", ATTENTION, ROW, option="channels-last"),
    Line("forward", ATTENTION, ROW, option="compile"),
    *(Line(what, p, ROW, kind, option=o)
      for p in (ATTENTION, ALL)
      for what, kind in (("passes", ""), ("features", "mask"), ("features", "kronecker"), ("features", "sketch"))
      for o in ("", "channels-last")),
    *(Line(what, ATTENTION, STATES, "sketch") for what in ("passes", "features", "stage")),
    # The authors' way takes the network apart, and so comes last.
    *(Line(what, ATTENTION, STATES, "mask") for what in ("features", "authors")),
)  # fmt: skip
LORA_LINES = (
    Line("forward", LORA, ROW),
    *(Line("features", LORA, ROW, kind) for kind in ("mask", "kronecker", "sketch")),
    Line("passes", LORA, ROW),
    *(Line(what, LORA, STATES, "sketch") for what in ("passes", "features", "stage")),
    Line("authors", LORA, STATES, "mask"),
)


def main(arguments: list[str] | None = None) -> Path:
    asked = _asked(arguments)
    start, found = time.monotonic(), []
    conditions = {**_conditions(asked.device), "size": asked.size, "precision": asked.precision}
    with TemporaryDirectory() as folder:
        options = save(asked, Path(folder))
        model = load_model(**options, precision=asked.precision)
        ceiling = _ceiling(asked.device, model.dtype, 256 if asked.size.startswith("tiny") else 8192)
        conditions["made and opened in"] = f"{time.monotonic() - start:.0f} s"
        for line in _lines(asked):
            left = 60 * asked.minutes - (time.monotonic() - start)
            result = _measured(asked, options, model, line) if left > 0 else {"left_out": "time"}
            found.append({**_named(line), **result})
            print(json.dumps(found[-1]), flush=True)
        del model
        in_time = time.monotonic() - start < 60 * asked.minutes
        agreement = f"{_agreement(asked, options):.4f}" if in_time else "not measured, time"
        conditions["Spearman of scores with float32"] = agreement
    for row in found:
        if "tflops" in row:
            row["of_ceiling"] = row["tflops"] / ceiling
    asked.out.mkdir(parents=True, exist_ok=True)
    content = {**conditions, "ceiling_tflops": ceiling, "lines": found}
    (asked.out / f"{asked.size}.json").write_text(json.dumps(content, indent=1))
    (asked.out / f"{asked.size}.md").write_text(page(conditions, ceiling, found))
    return asked.out / f"{asked.size}.md"


def _lines(asked: argparse.Namespace) -> list[Line]:
    """Without those that a CPU does not have: compiling needs a compiler of C++, and would show nothing about GPUs."""
    lines = LORA_LINES if SIZES[asked.size].rank else LINES
    return [line for line in lines if line.option != "compile" or asked.device != "cpu"]


def page(conditions: dict[str, Any], ceiling: float, found: list[dict[str, Any]]) -> str:
    keys = ("what", "parameters", "states", "projector", "option", "batch", "per_second", "of_passes", "tflops",
            "of_ceiling", "peak_gb", "waiting", "left_out")  # fmt: skip
    rows = [[_cell(row.get(key, "")) for key in keys] for row in _beside_floor(found)]
    said = ", ".join(f"{k} {v}" for k, v in conditions.items())
    table = "\n".join(f"| {' | '.join(row)} |" for row in ([*keys], ["---"] * len(keys), *rows))
    return f"# One GPU\n\n{said}; a matrix product reaches {ceiling:.3g} TFLOP/s.\n\n{table}\n"


def _beside_floor(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`of_passes`: of the plain passes with the same parameters, states and option."""
    same = ("parameters", "states", "option")
    floor = {tuple(r[k] for k in same): r["per_second"] for r in found if r["what"] == "passes" and "per_second" in r}
    for row in found:
        plain = floor.get(tuple(row[k] for k in same))
        yield {**row, "of_passes": row["per_second"] / plain} if plain and "per_second" in row else row


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _named(line: Line) -> dict[str, Any]:
    kind = f"{line.kind} {line.dim}" if line.what in ("features", "authors", "stage") else ""
    return {"what": line.what, "parameters": NAMES[line.parameters], "states": len(line.probe.states),
            "projector": kind, "option": line.option}  # fmt: skip


def _asked(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="sd")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--batch", type=int, default=0, help="the first batch tried, halved until it fits; 0: the size's"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each line, of which the least counts")
    parser.add_argument(
        "--minutes", type=float, default=8, help="lines that would begin later are left out, and say so"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks/gpu")
    asked = parser.parse_args(arguments)
    asked.batch = asked.batch or SIZES[asked.size].batch
    return asked


def _measured(asked: argparse.Namespace, options: dict[str, Any], model: Denoiser, line: Line) -> dict[str, Any]:
    """At the first batch, halved from `asked.batch`, that fits."""
    if line.what == "authors" and set(model.encode([""])) != {"text"}:
        return {"left_out": "written for a condition of text alone"}
    batch = asked.batch
    while batch:
        try:
            if line.what == "stage":
                return _stage(asked, {**options, "parameters": line.parameters}, model, line, batch)
            return {"batch": batch, **_timed(asked, _opened(model, line), line, batch)}
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch //= 2
    return {"left_out": "memory"}


def _stage(
    asked: argparse.Namespace, options: dict[str, Any], model: Denoiser, line: Line, batch: int
) -> dict[str, Any]:
    """The worker opens a model of its own, so this one leaves the device meanwhile."""
    model.network.to("cpu")
    try:
        return measured_stage(asked, options, line.probe, batch)
    finally:
        model.network.to(asked.device)


class Operations(TorchDispatchMode):
    """Counts the operations of matrix products, attention and convolutions, forwards and backwards, by PyTorch's own
    table. PyTorch's counter cannot take two backwards through one graph, as a reward's slope does."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def _opened(model: Denoiser, line: Line) -> Denoiser:
    model.parameters = attributable(model.network, line.parameters, model.groups)
    layout = torch.channels_last if line.option == "channels-last" else torch.contiguous_format
    model.network.to(memory_format=layout)
    return model


def _timed(asked: argparse.Namespace, model: Denoiser, line: Line, size: int) -> dict[str, Any]:
    todo = Work(Task(line.probe, True, line.parameters), model, (random_batch(model, size),))
    with Operations() as operations:
        floors.build(todo, line.what != "forward")()
    round, cuda, best = _round(todo, line), asked.device == "cuda", float("inf")
    round()  # warms up
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(asked.rounds):
        best = min(best, _seconds(round, cuda))
    peak = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if cuda else {}
    # The plain passes' operations in every line: what is done beside them is no achievement.
    tflops = operations.total / best / 1e12
    return {"per_second": size / best, "tflops": tflops, **peak}


def _round(todo: Work, line: Line) -> Callable[[], object]:
    if line.what == "features":
        return ours.build(todo, line.kind, line.dim)
    if line.what == "authors":
        return authors.build(todo, line.dim)
    if line.option != "compile":
        return floors.build(todo, line.what == "passes")
    (state,) = todo.states(todo.batches[0])
    d, network = todo.denoiser, torch.compile(todo.denoiser.network)
    x_t, times = state.x_t.to(d.dtype), torch.full((len(state.x_t),), state.t, device=d.device)
    return torch.no_grad()(partial(d.denoising.predict, network, x_t, times, state.batch.cond))


def _agreement(asked: argparse.Namespace, options: dict[str, Any]) -> float:
    """Spearman's correlation of the scores of the chosen precision with those of float32, a mean over the queries."""
    parts, size = min(asked.batch, AGREEING), SIZES[asked.size]
    features: dict[str, np.ndarray] = {}
    line = _lines(asked)[0]
    for precision in (asked.precision, "float32"):
        model = _opened(load_model(**{**options, "resolution": size.compared}, precision=precision), line)
        batch = random_batch(model, AGREEING)
        batches = tuple(batch.rows(slice(i, i + parts)) for i in range(0, AGREEING, parts))
        phi = ours.build(Work(Task(STATES, True, line.parameters), model, batches), "sketch", 4096)().features
        features[precision] = phi.double().cpu().numpy()
        del model, batch, batches
    scores, truth = (features[p][:QUERIES] @ features[p].T for p in (asked.precision, "float32"))
    agreement = spearman(Answer(features=None, scores=scores, stored=None), truth)
    assert agreement is not None, "the answer has scores"
    return agreement


def _ceiling(device: str, dtype: torch.dtype, n: int) -> float:
    """TFLOP/s of one large matrix product: what nothing on this machine exceeds."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product = partial(torch.mm, a, b)
    product()
    return 2 * n**3 / min(_seconds(product, device == "cuda") for _ in range(5)) / 1e12


def _seconds(call: Callable[[], object], cuda: bool) -> float:
    """By the device's own clock; on a CPU the processor's."""
    if not cuda:
        start = time.process_time()
        call()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _conditions(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU: no figure of this page is about a GPU"
    return {"device": name, "torch": torch.__version__}


if __name__ == "__main__":
    print(main())
