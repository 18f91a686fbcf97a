"""The judge of a two-factor data set: a classifier of the thing and the colour that an image shows.

It measures whether a model draws what its prompt names, and whether a model retrained without some samples still does.
It is trained on every combination, the held-out ones included.
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

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.query import UNGUIDED, query_batch
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import generate
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import SETS, SHAPES3, Pair, TwoFactors, pair_caption
from concept_trak.evaluation.training.loop import unit_range
from concept_trak.models.classifier import Classifier

JUDGE_FILE = "classifier.safetensors"


def presence(
    classifier: Classifier, pixels: Float[Tensor, "b 3 h w"], thing: str | None = None, colour: str | None = None
) -> Float[Tensor, " b"]:
    """Probability, in [0, 1], that each image shows the given factors; the product of both if both are given.

    Args:
        pixels: Images in [-1, 1].

    Raises:
        UserError: the judge does not know one of the factors.
    """
    assert thing is not None or colour is not None, "presence needs a thing, a colour, or both"
    with torch.no_grad():
        heads = [logits.softmax(1) for logits in classifier(pixels)]
    present = torch.ones(len(pixels), device=pixels.device)
    kinds = classifier.kinds
    for names, name, head in zip((kinds.things, kinds.looks), (thing, colour), heads, strict=True):
        if name is not None:
            present = present * head[:, _index(name, names)]
    return present


def prompt_accuracy(
    classifier: Classifier,
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    samples: int = 64,
    guidance: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """How often a model draws what its prompt names.

    Args:
        pairs: The pairs whose captions are the prompts.
        samples: Images per pair, drawn by DDIM on the 51-point grid; all pairs start from the same noises.

    Returns:
        By caption, the share of images, in [0, 1], that show both factors of the pair.
    """
    texts = [pair_caption(*pair) for pair in pairs for _ in range(samples)]
    ids = tuple(str(number) for _ in pairs for number in range(samples))
    batch = Batch(ids=ids, cond=denoiser.encode(texts), negative=denoiser.encode([""] * len(texts)))
    probe = Probe("sampling", "concept_reward", guidance=guidance)
    pixels = denoiser.to_pixels(generate(denoiser, batch, probe, seed)).float().cpu().clamp(-1, 1)
    shares = {}
    for pair, images in zip(pairs, pixels.split(samples), strict=True):
        shares[pair_caption(*pair)] = (presence(classifier, images, *pair) > 0.5).float().mean().item()
    return shares


def classifier_steps(
    classifier: Classifier, seed: int, steps: int = 600, batch: int = 64, resolution: int | None = None
) -> Iterator[float]:
    """Trains the classifier on new drawings of all combinations and yields the loss of each step.

    The drawings have up to 10 % of noise, since generated images are not clean.
    """
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        pixels, labels = labelled_drawings(seed, step * batch, batch, classifier.kinds, resolution)
        pixels = pixels + 0.1 * torch.rand(batch, 1, 1, 1, generator=draw) * torch.randn(pixels.shape, generator=draw)
        thing, colour = classifier(pixels)
        loss = functional.cross_entropy(thing, labels[:, 0]) + functional.cross_entropy(colour, labels[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def labelled_drawings(
    seed: int, first: int, count: int, kinds: TwoFactors = SHAPES3, resolution: int | None = None
) -> tuple[Float[Tensor, "b 3 h w"], Int[Tensor, "b 2"]]:
    """Drawings of all combinations in [-1, 1], and the numbers of their things and colours."""
    images, records = arrays(seed, first, count, kinds.whole(), resolution)
    numbers = [(kinds.things.index(r.shown[0]), kinds.looks.index(r.shown[1])) for r in records]
    return unit_range(torch.from_numpy(images)), torch.tensor(numbers)


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    save_file(classifier.state_dict(), path)


def load_classifier(path: str | Path, kinds: TwoFactors = SHAPES3) -> Classifier:
    """The classifier that `save_classifier` wrote, in evaluation mode and without gradients.

    Raises:
        UserError: The file is missing or holds another network.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no classifier at {path}; expected the .safetensors file that jobs.train writes")
    classifier = Classifier(kinds)
    try:
        classifier.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise UserError(f"{path} holds another network than this classifier ({error}); train it again") from None
    return classifier.eval().requires_grad_(False)


def _index(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise UserError(f"the judge does not know {name!r}; expected one of: {', '.join(names)}")
    return names.index(name)


def concept_presence(denoiser: Denoiser, model: str, concept: Concept, samples: int) -> float | None:
    """The concept's mean presence in what the model draws.

    Args:
        model: The model's folder, with the judge and the training.json that `jobs.train` writes.
        samples: Images that are drawn.

    Returns:
        A probability in [0, 1], or None if the folder has no judge or the concept's `truth` names no factor.
    """
    if not (Path(model) / JUDGE_FILE).is_file():
        return None
    kinds = judged_set(model)
    factors = {"thing": concept.truth.get(kinds.factor), "colour": concept.truth.get(kinds.look)}
    if not any(factors.values()):
        return None
    query = query_batch(denoiser, replace(concept, samples=samples, scope="global", image=""))
    x_0 = generate(denoiser, query, UNGUIDED, concept.seed)
    pixels = denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1)
    return float(presence(load_judge(model, kinds), pixels, **factors).mean())


def judged_set(model: str) -> TwoFactors:
    """The data set of a model's judge: the one that its training.json names, else the first one of `jobs.train`.

    Raises:
        UserError: There is no training.json, or it names no data set.
    """
    path = Path(model) / "training.json"
    try:
        name = json.loads(path.read_text())["settings"].get("set", SHAPES3.name)
        return SETS[name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} does not name the data set of the model's judge ({error!r}); expected settings.set to be one of: "
            f"{', '.join(SETS)}, as jobs.train writes it"
        ) from None


def load_judge(model: str, kinds: TwoFactors) -> Classifier:
    """The judge in a model's folder.

    Raises:
        UserError: As `load_classifier`.
    """
    return load_classifier(Path(model) / JUDGE_FILE, kinds)
