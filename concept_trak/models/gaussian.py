"""A class-conditional Gaussian, whose optimal denoiser has a closed form: the oracle of the tests.

x_0 | class ~ N(mu_class, s^2 I). Then E[x_0 | x_t] = mu + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha mu), and the
probability-flow path from x_0 is x_t = alpha_t mu + (s_t / s_0)(x_0 - alpha_0 mu) with s_t^2 = alpha_t^2 s^2 +
sigma_t^2. The parameters are the class means, each owned by one class: influence across classes is exactly 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.attribution.denoiser import Condition, Conditioning, Denoiser, Prediction, attributable


@dataclass(frozen=True)
class Settings:
    """Classes are named "0", "1", ...; `spread` is s; `seed` draws the means from N(0, I)."""

    classes: int = 3
    shape: tuple[int, int, int] = (1, 4, 4)
    spread: float = 0.5
    seed: int = 0
    dtype: torch.dtype = torch.float64


class Means(nn.Module):
    """The raw network: a class mean per label."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(settings.seed)
        width = torch.Size(settings.shape).numel()
        means = torch.randn(settings.classes, width, generator=generator, dtype=settings.dtype)
        self.mean = nn.Embedding.from_pretrained(means, freeze=False)

    def forward(self, label: Tensor) -> Tensor:
        return self.mean(label)


class Gaussian(Denoiser):
    """The optimal denoiser of the class-conditional Gaussian, linear betas 1e-4 ... 0.02 over 1000 steps."""

    def __init__(self, settings: Settings = Settings(), parameters: str = "all") -> None:
        self.settings, self.shape = settings, settings.shape
        self.network = Means(settings)
        self.parameters = attributable(self.network, parameters)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, 0)
        self.alpha, self.sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self.negative, self.combinations = "other_label", tuple(str(i) for i in range(settings.classes))

    def __call__(self, x_t: Float[Tensor, "b c h w"], t: int, cond: Condition) -> Prediction:
        alpha, sigma, s = self.alpha[t].item(), self.sigma[t].item(), self.settings.spread
        mu = self.network(cond["label"]).reshape(x_t.shape)
        x_0 = mu + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x_t - alpha * mu)
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)

    @property
    def conditioning(self) -> Conditioning:
        return "class"

    def encode(self, texts: Sequence[str]) -> Condition:
        return {"label": torch.tensor([int(text) for text in texts], device=self.device)}

    def to_latent(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        return pixels[:, : self.shape[0]]

    def to_pixels(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        return x_0[:, :1].expand(-1, 3, -1, -1)

    def identity(self) -> dict[str, str]:
        return {"gaussian": repr(self.settings)}
