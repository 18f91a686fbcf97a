"""A user's differentiable classifier of x_0hat, read from safetensors: a few architectures, and never any code.

| architecture   | tensors                                                       | log p of                 |
|----------------|---------------------------------------------------------------|--------------------------|
| linear         | weight [n, d], bias [n]                                       | W x + b                  |
| mlp            | hidden.weight [m, d], hidden.bias, out.weight [n, m], out.bias | V silu(W x + b) + c     |
| convolutional  | trunk.* as in classifier.py, head.weight [n, 64], head.bias   | the trunk's mean, W x + b |
| (jobs.train's) | trunk.*, thing.*, colour.*, as `classifier.save` writes them  | the head that has class y |

x is x_0hat as the model denoises it, flattened from [c, h, w] (d = c h w): pixels in [-1, 1], or the latents of a VAE.
The last two take pixels alone. The file's metadata has the `architecture` and, as a JSON list, its n `classes`. With
`output: sigmoid` the classes are independent; otherwise they exclude one another (softmax). A file of jobs.train needs
no metadata.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.data.benchmarks.two_factors import SETS, SHAPES3, TwoFactors
from concept_trak.store.checked_safetensors import safetensors_header

Weights = dict[str, Tensor]
LogProbability = Callable[[Float[Tensor, "b c *space"]], Float[Tensor, " b"]]


class Classifier(nn.Module):
    """A small convolutional network with one head per factor, for images of 16 to 64 pixels."""

    def __init__(self, kinds: TwoFactors = SHAPES3) -> None:
        super().__init__()
        self.kinds = kinds
        widths = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            stride = 1 if before == 3 else 2
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.thing = nn.Linear(widths[-1], len(kinds.things))
        self.colour = nn.Linear(widths[-1], len(kinds.looks))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b things"], Float[Tensor, "b colours"]]:
        """Logits of the things and of the colours, for pixels in [-1, 1]."""
        features = self.trunk(pixels).mean(dim=(2, 3))
        return self.thing(features), self.colour(features)


with torch.device("meta"):
    _TRUNK = Classifier().trunk  # the layers alone; every weight comes from the file


def linear(w: Weights, x: Tensor) -> Tensor:
    return functional.linear(x.flatten(1), w["weight"], w["bias"])


def mlp(w: Weights, x: Tensor) -> Tensor:
    hidden = functional.silu(functional.linear(x.flatten(1), w["hidden.weight"], w["hidden.bias"]))
    return functional.linear(hidden, w["out.weight"], w["out.bias"])


def convolutional(w: Weights, x: Tensor, head: str = "head") -> Tensor:
    trunk = {name.removeprefix("trunk."): value for name, value in w.items() if name.startswith("trunk.")}
    features = functional_call(_TRUNK, trunk, (x,), strict=True).mean(dim=(2, 3))
    return functional.linear(features, w[f"{head}.weight"], w[f"{head}.bias"])


ARCHITECTURES: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "linear": linear,
    "mlp": mlp,
    "convolutional": convolutional,
    "thing": partial(convolutional, head="thing"),
    "colour": partial(convolutional, head="colour"),
}
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(functional.log_softmax, dim=1),
    "sigmoid": functional.logsigmoid,
}


class Head(NamedTuple):
    """The logits of some classes: the function that gives them, and the one that makes log-probabilities of them."""

    architecture: str
    classes: tuple[str, ...]
    output: str = "softmax"


def open_classifier(data: bytes, path: str, shows: str, denoiser: Denoiser) -> LogProbability:
    """The function from x_0 [b, c, h, w] to log p(`shows` | x_0) [b], on the model's device, at least in float32.

    Args:
        data: the bytes of the classifier's file.
        path: its name, for messages.
        shows: the class.
        denoiser: the model whose x_0 the classifier takes.

    Raises:
        UserError: the file is no such classifier, has no such class, or takes another shape.
    """
    weights, heads = _read(data, path)
    classes = [name for head in heads for name in head.classes]
    head = next((head for head in heads if shows in head.classes), None)
    if head is None:
        raise UserError(f"{path} has no class {shows!r}; expected one of: {', '.join(classes)}")
    kind = torch.promote_types(denoiser.dtype, torch.float32)
    logits = partial(ARCHITECTURES[head.architecture], {n: w.to(denoiser.device, kind) for n, w in weights.items()})
    place, log_p = head.classes.index(shows), OUTPUTS[head.output]

    def log_probability(x_0: Tensor) -> Tensor:
        return log_p(logits(x_0.to(kind)))[:, place]

    _try(logits, head, torch.zeros(1, *denoiser.shape, dtype=kind, device=denoiser.device), path)
    return log_probability


def _try(logits: Callable[[Tensor], Tensor], head: Head, x_0: Tensor, path: str) -> None:
    """Run the classifier once, so that a wrong shape is refused before anything starts."""
    with torch.no_grad():
        try:
            outputs = logits(x_0)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{path} is no {head.architecture} classifier of this model's x_0, {list(x_0.shape[1:])} ({error}); "
                "train it on what the model denoises: its pixels, or its VAE's latents"
            ) from None
    if outputs.shape[1] != len(head.classes):
        raise UserError(
            f"{path} has {outputs.shape[1]} outputs and names {len(head.classes)} classes; name each of them"
        )


def _read(data: bytes, path: str) -> tuple[Weights, Sequence[Head]]:
    """The tensors and the heads: those of the metadata, or those of a classifier of jobs.train."""
    try:
        weights = tensors_of(data)
        metadata = safetensors_header(data).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is no safetensors file ({error}); pickled weights can run code, so save it as one"
        ) from None
    if {"thing.weight", "colour.weight"} <= set(weights):
        sizes = (len(weights["thing.weight"]), len(weights["colour.weight"]))
        for kinds in SETS.values():
            if sizes == (len(kinds.things), len(kinds.looks)):
                return weights, (Head("thing", kinds.things), Head("colour", kinds.looks))
    return weights, (_head(metadata, path),)


def _head(metadata: dict[str, str], path: str) -> Head:
    """The head that the metadata describes.

    Raises:
        UserError: it is incomplete, or has an unknown value.
    """
    architecture, output = metadata.get("architecture", ""), metadata.get("output", "softmax")
    if architecture not in ("linear", "mlp", "convolutional") or output not in OUTPUTS:
        raise UserError(
            f"{path} has architecture={architecture!r}, output={output!r} in its metadata; expected linear, mlp or "
            f"convolutional, and {' or '.join(OUTPUTS)}; see concept_trak/models/classifier.py"
        )
    try:
        classes = json.loads(metadata.get("classes", "null"))
    except (ValueError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f'{path} does not name its classes; expected metadata classes=["name", ...] as JSON')
    return Head(architecture, tuple(classes), output)
