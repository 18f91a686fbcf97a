"""The work that every contestant is given: a network with its weights, samples, and what a gradient is taken of.

It is drawn anew in every process, from nothing but names and seeds, and each process says in a digest what it drew.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from concept_trak.attribution.denoiser import Denoiser, negative_count, negatives
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.state import Batch, Probe, required
from concept_trak.attribution.trajectory import TRAJECTORIES, States
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import SETS, pair_caption
from concept_trak.models import load_model

ROOT = Path(__file__).resolve().parents[2]
LAYERS = r"\.(weight|bias)$"  # what layers own: nobody needs a way of its own for a network's loose tables
ATTENTION = r"\battn\d*\..*\.(weight|bias)$"
SEED = 0
QUERIES = 8  # the first samples: their scores against all others are what is compared


@dataclass(frozen=True)
class Task:
    """What is to be pulled back, at which states, and to which parameters."""

    probe: Probe
    unit: bool
    parameters: str = LAYERS
    over: str = "all"
    exponent: float = 1.0


_row = Probe("forward_noise", "denoising_error", times=(500,))
TASKS = {
    "rows": Task(_row, unit=False),
    "attention": Task(_row, unit=False, parameters=ATTENTION),
    "states": Task(METHODS["concept_b"].train, unit=True),
    "side": Task(METHODS["concept_trak"].train, unit=True),
    "cheaper": Task(replace(METHODS["fit_trak"].train, doubt=1000.0), unit=True, over=METHODS["fit_trak"].over),
}
"""rows: one denoising error a sample. states: the reward at nine noised states, unit norm, summed. side: the same with
guided inversion, concept_trak's whole training side. cheaper: fit_trak's, which believes every fit here: random weights
fit no caption, so the row itself would make zeros of them, at the same cost but with nothing to agree about."""


@dataclass(frozen=True)
class Model:
    """Which network, which drawings it is shown, and how many samples of each task are a round."""

    name: str
    path: str
    """A pipeline directory from the repository's root; "" is `tiny`."""
    kinds: str
    negative: str
    samples: dict[str, int]
    batch: int = 16


_few = {"rows": 32, "states": 8, "side": 8, "cheaper": 8}
MODELS = {
    one.name: one
    for one in (
        Model("tiny", "", "shapes3", "empty", {"rows": 64, "attention": 64, "states": 32, "side": 16, "cheaper": 16}),
        Model("demo", "assets/demo", "shapes3", "empty", _few),
        Model("shapes2-0", "assets/benchmark/shapes2-0", "shapes2", "other_label", _few),
    )
}


@dataclass(frozen=True)
class Work:
    """One task on one model, in this process."""

    task: Task
    denoiser: Denoiser
    batches: tuple[Batch, ...]

    @cached_property
    def n(self) -> int:
        return sum(len(batch.ids) for batch in self.batches)

    def states(self, batch: Batch) -> States:
        return TRAJECTORIES[self.task.probe.trajectory](self.denoiser, batch, self.task.probe, SEED)

    def rows(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(x_t, text, eps) of each batch, for tasks with one state: what a rival is handed."""
        found = [(state, batch) for batch in self.batches for state in self.states(batch)]
        assert len(found) == len(self.batches), "a rival's loss stands at one state"
        return [(s.x_t.contiguous(), b.cond["text"], required(s.noise, "noise", "rows").contiguous()) for s, b in found]

    def digest(self) -> str:
        """sha256 of the attributable weights and of everything a sample is made of."""
        whole = hashlib.sha256()
        for name, p in self.denoiser.parameters.items():
            whole.update(name.encode() + p.detach().numpy().tobytes())
        for batch in self.batches:
            conditions = [cond["text"] for cond in (batch.cond, batch.negative, *batch.others)]
            for tensor in (required(batch.x_0, "x_0", "digest"), *conditions):
                whole.update(tensor.numpy().tobytes())
        return whole.hexdigest()


def draw(model: Model, task: str, precision: str = "float32") -> Work:
    """The work of a task: the model opened, its samples drawn and encoded."""
    chosen = TASKS[task]
    denoiser = opened(model, chosen.parameters, precision)
    first = range(0, model.samples[task], model.batch)
    batches = [batched(denoiser, model, chosen, at, min(model.batch, model.samples[task] - at)) for at in first]
    return Work(chosen, denoiser, tuple(batches))


def opened(model: Model, parameters: str, precision: str) -> Denoiser:
    options: dict[str, Any] = {
        "parameters": parameters,
        "negative": model.negative,
        "combinations": [pair_caption(*pair) for pair in SETS[model.kinds].pairs],
        "precision": precision,
    }
    if model.path:
        return load_model(str(ROOT / model.path), **options)
    with TemporaryDirectory() as folder:
        tiny().save_pretrained(folder)
        return load_model(folder, **options)


def batched(denoiser: Denoiser, model: Model, task: Task, first: int, count: int) -> Batch:
    pixels, drawings = arrays(SEED, first, count, SETS[model.kinds], denoiser.resolution)
    ids, captions = tuple(d.id for d in drawings), [d.caption for d in drawings]
    turns = range(negative_count(denoiser, task.probe.negatives))
    against = [negatives(denoiser, ids, captions, SEED, turn) for turn in turns]
    x_0 = denoiser.to_latent(torch.from_numpy(pixels).float() / 127.5 - 1)
    return Batch(ids, denoiser.encode(captions), against[0], x_0, others=tuple(against[1:]))


def tiny() -> Any:
    """A UNet of 268,963 random parameters on 16 x 16 pixels: residual blocks, and cross attention at half of that."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from concept_trak.models import small

    words = small.tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=words.model_max_length, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=8, attention_head_dim=8, cross_attention_dim=32,
        )  # fmt: skip
        parts: dict[str, Any] = {"unet": unet, "text_encoder": CLIPTextModel(text), "tokenizer": words}
    rest = {"vae": None, "scheduler": small.scheduler("epsilon"), "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, **rest, requires_safety_checker=False)


class Net(nn.Module):
    """eps_theta(x_t, t, text) as a plain module, for those who know nothing of denoisers.

    Its parameters are the attributable ones; all others are made constants, so that "all parameters" means the same to
    everybody.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.network, self.ask = work.denoiser.network, [work.denoiser]  # a list hides the encoders from PyTorch
        self.t = work.task.probe.times[0]
        for module in self.network.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if not p.requires_grad:
                    delattr(module, name)
                    module.register_buffer(name, p.detach())

    def forward(self, x_t: Tensor, text: Tensor, t: int | None = None) -> Tensor:
        return self.ask[0](x_t, self.t if t is None else t, {"text": text}).eps


def one_thread() -> None:
    """What every process of the benchmark sets before anything else."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def smaller(model: Model, samples: int) -> Model:
    """The same model with so many samples in every task."""
    return replace(model, samples=dict.fromkeys(model.samples, samples))
