"""The judge of a two-factor data set: which thing and which colour an image shows.

It says whether a model draws what it is asked for, and whether one retrained without some samples still does. It knows
every combination, the held-out ones included, so that it is no party to the question.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.query import UNGUIDED, query_batch
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import generate
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import SETS, SHAPES3, Pair, TwoFactors, pair_caption
from concept_trak.evaluation.training.loop import unit_range
from concept_trak.models.classifier import Classifier


def presence(
    classifier: Classifier, pixels: Float[Tensor, "b 3 h w"], thing: str | None = None, colour: str | None = None
) -> Float[Tensor, " b"]:
    """Probability, in [0, 1], that each image shows the factors that are named (their product if both are).

    Raises:
        ValueError: neither factor is named, or a name is unknown.
    """
    if thing is None and colour is None:
        raise ValueError("presence of what? Name a thing, a colour, or both.")
    with torch.no_grad():
        heads = [logits.softmax(1) for logits in classifier(pixels)]
    present = torch.ones(len(pixels), device=pixels.device)
    kinds = classifier.kinds
    for names, name, head in zip((kinds.things, kinds.colours), (thing, colour), heads, strict=True):
        if name is not None:
            present = present * head[:, _place(name, names)]
    return present


def obedience(
    classifier: Classifier,
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    samples: int = 64,
    guidance: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """How often a model draws what it is asked for: by caption of each pair, the share in [0, 1] of
    `samples` generated images that show both. DDIM on the 51-point grid; all pairs start from the same noises."""
    texts = [pair_caption(*pair) for pair in pairs for _ in range(samples)]
    ids = tuple(str(number) for _ in pairs for number in range(samples))
    batch = Batch(ids, denoiser.encode(texts), denoiser.encode([""] * len(texts)))
    probe = Probe("sampling", "concept_reward", guidance=guidance)
    pixels = denoiser.to_pixels(generate(denoiser, batch, probe, seed)).float().cpu().clamp(-1, 1)
    shares = {}
    for pair, images in zip(pairs, pixels.split(samples), strict=True):
        shares[pair_caption(*pair)] = (presence(classifier, images, *pair) > 0.5).float().mean().item()
    return shares


def fit(
    classifier: Classifier, seed: int, steps: int = 600, batch: int = 64, resolution: int | None = None
) -> Iterator[float]:
    """Trains on fresh drawings of all combinations with up to 10 % of noise (generated images are not clean); yields
    the loss of each step."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        pixels, labels = drawings(seed, step * batch, batch, classifier.kinds, resolution)
        pixels = pixels + 0.1 * torch.rand(batch, 1, 1, 1, generator=draw) * torch.randn(pixels.shape, generator=draw)
        thing, colour = classifier(pixels)
        loss = functional.cross_entropy(thing, labels[:, 0]) + functional.cross_entropy(colour, labels[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        yield loss.item()


def drawings(
    seed: int, first: int, count: int, kinds: TwoFactors = SHAPES3, resolution: int | None = None
) -> tuple[Float[Tensor, "b 3 h w"], Int[Tensor, "b 2"]]:
    """Drawings of all combinations in [-1, 1], and the numbers of their things and colours."""
    images, drawn = arrays(seed, first, count, kinds.whole(), resolution)
    numbers = [(kinds.things.index(d.shown[0]), kinds.colours.index(d.shown[1])) for d in drawn]
    return unit_range(torch.from_numpy(images)), torch.tensor(numbers)


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    save_file(classifier.state_dict(), path)


def load_classifier(path: str | Path, kinds: TwoFactors = SHAPES3) -> Classifier:
    """The classifier that `save` wrote, ready to judge.

    Raises:
        ValueError: the file is missing or holds another network.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no classifier at {path}; expected the .safetensors file that jobs.train writes.")
    classifier = Classifier(kinds)
    try:
        classifier.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network than this classifier ({error}); train it again.") from None
    return classifier.eval().requires_grad_(False)


def _place(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise ValueError(f"the judge knows no {name!r}; expected one of {', '.join(names)}.")
    return names.index(name)


JUDGE = "classifier.safetensors"


def shown(denoiser: Denoiser, model: str, concept: Concept, samples: int) -> float | None:
    """The concept's mean presence in what the model draws; None where no judge can say."""
    if not (Path(model) / JUDGE).is_file():
        return None
    kinds = known_to(model)
    named = {"thing": concept.truth.get(kinds.factor), "colour": concept.truth.get("colour")}
    if not any(named.values()):
        return None
    asked = replace(concept, samples=samples, scope="global", image="")
    x_0 = generate(denoiser, query_batch(denoiser, asked), UNGUIDED, concept.seed)
    pixels = denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1)
    judge: Classifier = judge_of(model, kinds)
    return float(presence(judge, pixels, **named).mean())


def known_to(model: str) -> TwoFactors:
    """What the judge beside a model knows: the set that the model's training.json names (none: jobs.train's first).

    Raises:
        ValueError: there is no training.json, or it names no set.
    """
    path = Path(model) / "training.json"
    try:
        name = json.loads(path.read_text())["settings"].get("set", SHAPES3.name)
        return SETS[name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} does not say what the judge beside it knows ({error!r}); expected settings.set to be one of: "
            f"{', '.join(SETS)}, as jobs.train writes it"
        ) from None


def judge_of(folder: str, kinds: TwoFactors) -> Classifier:
    """The judge that stands beside a model."""
    return load_classifier(Path(folder) / "classifier.safetensors", kinds)
