"""The conditions a model knows by itself: what a sample is told from, and what is drawn where nothing is asked."""

from collections.abc import Sequence

from concept_trak.denoiser import Condition, Denoiser
from concept_trak.noise import choice


def negatives(denoiser: Denoiser, ids: Sequence[str], texts: Sequence[str], seed: int, turn: int = 0) -> Condition:
    """The model's own negative for each sample: the empty condition, or another combination keyed by (seed, id).

    `turn` counts on from there through the other combinations.
    """
    if denoiser.negative == "empty":
        return denoiser.encode([""] * len(ids))
    said = denoiser.spelled
    others = [[c for c in denoiser.combinations if said(c) != said(text)] for text in texts]
    if not all(others):
        raise ValueError("model.negative=other_label needs model.combinations with at least two entries to draw from")
    drawn = [
        o[(choice(len(o), seed, sample, "negative") + turn) % len(o)] for sample, o in zip(ids, others, strict=True)
    ]
    return denoiser.encode(drawn)


def negatives_of(denoiser: Denoiser, asked: int) -> int:
    """How many negatives a sample has where `asked` are: one if it is empty, else no more than there are others."""
    return 1 if denoiser.negative == "empty" else max(1, min(asked, len(denoiser.combinations) - 1))


def own_texts(denoiser: Denoiser, ids: Sequence[str], seed: int) -> list[str]:
    """Conditions under which a model draws what it draws: nothing, where it knows that, else one by (seed, id)."""
    if denoiser.negative == "empty":
        return [""] * len(ids)
    known = denoiser.combinations
    if not known:
        raise ValueError("model.negative=other_label needs model.combinations: what the model draws by itself")
    return [known[choice(len(known), seed, sample, "condition")] for sample in ids]
