"""Small float64 denoisers for oracles: every layer rule, and a parameter no rule covers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from concept_trak.attribution.denoiser import Condition, Conditioning, Denoiser, Prediction, attributable
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.ranking import Entry, TopK, histograms
from concept_trak.attribution.state import Batch


class Gain(nn.Module):
    """A layer without a rule, called with a keyword: it is replayed alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((8, 1, 1), 0.7))

    def forward(self, h: Tensor, *, skip: Tensor) -> Tensor:
        return skip + h * self.gain


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 8)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.down = nn.Conv2d(8, 8, 2, stride=2, bias=False)
        self.token_norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.gain = Gain()
        self.shift = nn.Parameter(torch.full((2, 1, 1), 0.1))  # of the whole network: no layer holds it
        self.mix_again = nn.Linear(8, 8)
        self.mix_again.weight = self.mix.weight  # tied
        self.last = nn.Conv2d(8, 2, 3, padding="same", padding_mode="circular")

    def forward(self, x: Tensor, t: float, label: Tensor) -> Tensor:
        h = torch.tanh(self.first(x) + self.label(label)[:, :, None, None] + t)
        h = self.gain(torch.nn.functional.silu(self.wide(self.norm(h))), skip=h)
        tokens = self.mix(self.token_norm(self.down(h).flatten(2).transpose(1, 2))).softmax(-1)
        tokens = self.mix_again(self.mix(tokens)).transpose(1, 2).unflatten(2, (3, 3))
        return self.last(h + nn.functional.interpolate(tokens, scale_factor=2.0)) + self.shift


class Toy(Denoiser):
    """A random network with linear betas; labels 0 ... 3, label 3 is "empty"."""

    def __init__(self, parameters: str = "all", seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = Net().double()
        self.parameters, self.shape = attributable(self.network, parameters), (2, 6, 6)
        alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.alpha, self.sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def __call__(self, x_t: Tensor, t: int, cond: Condition) -> Prediction:
        eps = self.network(x_t, t / 1000, cond["label"])
        return Prediction((x_t - self.sigma[t].item() * eps) / self.alpha[t].item(), eps)

    @property
    def conditioning(self) -> Conditioning:
        return "class"

    def encode(self, texts: Sequence[str]) -> Condition:
        return {"label": torch.tensor([int(text) for text in texts])}

    def to_latent(self, pixels: Tensor) -> Tensor:
        return pixels[:, :2].double()

    def to_pixels(self, x_0: Tensor) -> Tensor:
        return x_0[:, :1].expand(-1, 3, -1, -1)

    def identity(self) -> dict[str, str]:
        return {"toy": "0"}


class Unconditional(Toy):
    """The same network asked for nothing: as a DDPM without labels, it has no condition at all."""

    def __call__(self, x_t: Tensor, t: int, cond: Condition) -> Prediction:
        assert not cond, "an unconditional model was asked for something"
        return super().__call__(x_t, t, {"label": torch.zeros(len(x_t), dtype=torch.int64)})

    def encode(self, texts: Sequence[str]) -> Condition:
        if any(texts):
            raise ValueError("an unconditional model knows no texts")
        return {}


def likes(x_0: Tensor) -> Tensor:
    """log p of a smooth classifier that is sure of nothing: [b]."""
    weights = torch.linspace(-1, 1, x_0[0].numel(), dtype=x_0.dtype).reshape(x_0.shape[1:])
    return torch.nn.functional.logsigmoid((weights * x_0.tanh()).flatten(1).sum(1))


def batch(denoiser: Denoiser, b: int = 5, seed: int = 0) -> Batch:
    """b samples with labels 0, 1, 2, 0, ..., negative label 3 (1 for the Gaussian), `without` the next label.

    Their concept is also given by a `target` and by the classifier `likes`.
    """
    x_0 = torch.stack([normal(denoiser.shape, seed, i, "x_0") for i in range(b)]).double()
    empty = "3" if isinstance(denoiser, Toy) else "1"
    cond, without = [str(i % 3) for i in range(b)], [str((i + 1) % 3) for i in range(b)]
    encode = denoiser.encode
    target = normal(denoiser.shape, seed, "target").double()
    ids = tuple(f"s{i}" for i in range(b))
    return Batch(
        ids,
        encode(cond),
        encode([empty] * b),
        x_0,
        encode(without),
        target=target.expand(b, *target.shape),
        classifier=likes,
    )


def top_k(m: int, entries: Sequence[Entry]) -> TopK:
    """The best and the worst m of these entries."""
    ends = TopK(m)
    ends.add_best(list(entries))
    ends.add_worst(list(entries))
    return ends


def histogram(values: Tensor, scale: float) -> list[int]:
    """The histogram of one column of scores, [n]."""
    return histograms(values[:, None], torch.tensor([scale]))[0].tolist()
