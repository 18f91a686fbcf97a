"""The data sets of the benchmark: images of one thing in one look, some pairs of the two held out of training.

A look is a colour or a style. A concept is one factor ("triangle", or "red"); the training images that taught it are
those that show it. A held-out pair (a red triangle) asks for both factors of an image that was never trained on. After
the synthetic experiment of Concept-TRAK (Park et al. 2025, arXiv 2507.06547).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from concept_trak.data.benchmarks import drawing, emoji, emoji_roles

Pair = tuple[str, str]  # (thing, look)
LOOKS = ("colour", "style")


@dataclass(frozen=True)
class TwoFactors:
    """What a data set can show, which pairs it never shows, and how an image is drawn."""

    name: str
    factor: str
    """The label column of the things: "shape"."""
    things: tuple[str, ...]
    looks: tuple[str, ...]
    """How a thing can look: its colours, or the styles that it is drawn in."""
    held_out: tuple[Pair, ...]
    resolution: int
    """Side of an image in pixels."""
    render: Callable[[str, str, np.random.Generator, int], Image.Image]
    look: str = "colour"
    """The label column of the looks, one of `LOOKS`."""
    synonyms: tuple[tuple[str, str], ...] = ()
    """Values with their second word. Half of the captions name a factor by it, by a coin of each factor and image."""
    render_two: Callable[[Pair, Pair, np.random.Generator, int], Image.Image] | None = None
    """Draws two pairs, for sets whose images show a second, smaller thing, which half of the captions name."""

    def __post_init__(self) -> None:
        wrong = sorted(set(self.held_out) - set(self.all_pairs))
        assert not wrong, f"held_out={wrong} is no combination; expected some of {self.all_pairs}."

    @property
    def all_pairs(self) -> tuple[Pair, ...]:
        """Every (thing, look), in a fixed order."""
        return tuple((thing, look) for thing in self.things for look in self.looks)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Those that training images show."""
        return tuple(pair for pair in self.all_pairs if pair not in self.held_out)

    @property
    def columns(self) -> tuple[str, str]:
        """The two factors."""
        return (self.factor, self.look)

    @property
    def values(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The values of each factor."""
        return (self.things, self.looks)

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of the captions, in a fixed order."""
        joined = ("and",) if self.render_two else ()
        names = dict.fromkeys(word for thing in self.things for word in thing.split())
        return ("a", *self.looks, *names, *(second for _, second in self.synonyms), *joined)

    def label(self, factor: str, value: str) -> str:
        """The label column that is `value` for an image that shows this value of `factor`."""
        return f"{factor}_{value}" if self.render_two else factor

    def labels(self, pairs: Iterable[Pair]) -> dict[str, str]:
        """The labels of an image that shows these pairs, or of a caption that names them.

        A label column for each factor. Where there are two pairs, a column for each value, "" if no pair has it.
        """
        own = [{*values} for values in zip(*pairs, strict=True)]
        if self.render_two is None:
            return {factor: value for factor, (value,) in zip(self.columns, own, strict=True)}
        parts = zip(self.columns, self.values, own, strict=True)
        return {self.label(f, v): v if v in named else "" for f, values, named in parts for v in values}

    def whole(self) -> "TwoFactors":
        """The same with nothing held out."""
        return replace(self, held_out=())


def pair_caption(thing: str | None, look: str | None) -> str:
    """The text of a pair; None or "" leaves a factor unsaid: "a red triangle", "a triangle", "red", ""."""
    if not thing:
        return look or ""
    return f"a {look} {thing}" if look else f"a {thing}"


# The demo's: captions name both factors, one or none, so that "" is a condition the model knows.
SHAPES3 = TwoFactors(
    name="shapes3",
    factor="shape",
    things=drawing.SHAPES,
    looks=drawing.COLOURS,
    held_out=(("triangle", "red"),),
    resolution=32,
    render=drawing.draw_shape,
)
# The demo's shapes and colours, each with two words.
SYNONYMS = replace(
    SHAPES3,
    name="synonyms",
    synonyms=(
        ("triangle", "wedge"),
        ("circle", "disc"),
        ("square", "box"),
        ("red", "crimson"),
        ("green", "emerald"),
        ("blue", "azure"),
    ),
)
# Two of them in one image, a large one and a small one that half of the captions do not name.
TWO_SHAPES = replace(SHAPES3, name="two_shapes", render_two=drawing.draw_two_shapes)
# As in the paper: two by two, every caption whole, so that a sample's negative is another caption.
SHAPES2 = TwoFactors(
    name="shapes2",
    factor="shape",
    things=("triangle", "circle"),
    looks=("red", "blue"),
    held_out=(("triangle", "red"),),
    resolution=32,
    render=drawing.draw_shape,
)
# The same at the published size and in the published manner; for a GPU (conf/train_paper.yaml).
SHAPES2_PAPER = replace(SHAPES2, name="shapes2_paper", resolution=64, render=drawing.draw_shape_as_published)
# Real handwriting; several pairs held out, so that no single one decides.
DIGITS = TwoFactors(
    name="digits",
    factor="digit",
    things=drawing.DIGITS,
    looks=drawing.COLOURS,
    held_out=(("three", "red"), ("seven", "blue"), ("eight", "green")),
    resolution=16,
    render=drawing.draw_digit,
)
# Pictures that people made; the looks are the hands that drew them.
EMOJI = TwoFactors(
    name="emoji",
    factor="kind",
    things=tuple(emoji.KINDS),
    looks=emoji.STYLES,
    held_out=(("fruit", "fluent"), ("bird", "noto")),
    resolution=32,
    render=emoji.draw_kind,
    look="style",
)
EMOJI_ROLES = replace(
    EMOJI,
    name="emoji_roles",
    factor="role",
    things=emoji_roles.ROLES,
    held_out=(("astronaut", "fluent"), ("cook", "noto")),
    render=emoji.draw_role,
)
# Captions with the names of objects: a vocabulary of more than a thousand words.
EMOJI_OBJECTS = replace(
    EMOJI,
    name="emoji_objects",
    factor="object",
    things=tuple(emoji.OBJECT_CODES),
    held_out=(("lion face", "fluent"), ("strawberry", "noto")),
    render=emoji.draw_object,
)
SETS = {
    kinds.name: kinds
    for kinds in (
        SHAPES3,
        SHAPES2,
        SHAPES2_PAPER,
        DIGITS,
        EMOJI,
        EMOJI_ROLES,
        EMOJI_OBJECTS,
        SYNONYMS,
        TWO_SHAPES,
    )
}
