"""CelebA and CelebA-HQ by three attributes, one triple of them held out: faces that show what was never shown together.

Read as they were published: an attribute file (the number of images, the names, then `<file> 1 -1 ...` a line; or the
same as CSV with a header) beside a folder of images.

    CelebAMask-HQ-attribute-anno.txt, CelebA-HQ-img/0.jpg ...          CelebAMask-HQ (Lee et al. 2020)
    list_attr_celeba.txt, img_align_celeba/000001.jpg ...              CelebA (Liu et al. 2015), also in Anno/ and Img/
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.data.benchmarks.export import Picture, at, within

HQ, ALIGNED = "CelebAMask-HQ-attribute-anno.txt", "list_attr_celeba.txt"
FILES = (HQ, ALIGNED, f"Anno/{ALIGNED}", "list_attr_celeba.csv")
FOLDERS = ("CelebA-HQ-img", "img_align_celeba", "Img/img_align_celeba", "images")


@dataclass(frozen=True)
class Faces:
    """Which attributes are conditions, in what words, and which combination training never sees."""

    attributes: tuple[str, ...] = ()
    """Three of the attribute file's names."""
    held_out: tuple[bool, ...] = ()
    """The combination that is left out of training, in the attributes' order."""
    words: tuple[tuple[str, str], ...] = ()
    """How the model's captions say each attribute: [there, not there]. Empty: `smiling`, `not smiling`."""

    def __post_init__(self) -> None:
        words = tuple(tuple(pair) for pair in self.words)
        object.__setattr__(self, "words", words)
        if self.attributes and len(self.attributes) != len(self.held_out):
            raise UserError(
                f"faces.attributes={list(self.attributes)}, faces.held_out={list(self.held_out)}; expected one true or "
                "false for each attribute"
            )
        if words and [len(pair) for pair in words] != [2] * len(self.attributes):
            raise UserError("faces.words: expected [there, not there] for each attribute, as the model's captions say")

    def caption(self, values: Sequence[bool]) -> str:
        """ "smiling, not male, young": every attribute, in order."""
        return ", ".join(self._word(i, value) for i, value in enumerate(values))

    def _word(self, i: int, value: bool) -> str:
        if self.words:
            return self.words[i][0 if value else 1]
        word = self.attributes[i].lower().replace("_", " ")
        return word if value else f"not {word}"


def celeba_pictures(root: Path, faces: Faces) -> list[Picture]:
    """Every image but those of the held-out combination, captioned by its attributes, which are its labels too.

    Raises:
        UserError: the layout, a line of the file or an attribute's name is not as it should be.
    """
    file, folder = at(root, *FILES), at(root, *FOLDERS)
    names, rows = _read(file)
    if not faces.attributes:
        raise UserError(f"faces.attributes is empty; expected three of: {', '.join(names)}")
    for name in faces.attributes:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.4)
            raise UserError(
                f"faces.attributes: {file} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    places = [names.index(name) for name in faces.attributes]
    pictures = []
    for image, values in rows:
        triple = tuple(values[place] for place in places)
        if triple != faces.held_out:
            labels = {name: _label(value) for name, value in zip(faces.attributes, triple, strict=True)}
            pictures.append(Picture(Path(image).stem, within(folder, image), faces.caption(triple), labels))
    return pictures


def _read(file: Path) -> tuple[list[str], Iterator[tuple[str, list[bool]]]]:
    """The attributes' names, and the values of each image."""
    lines = [line.replace(",", " ").split() for line in file.read_text().splitlines() if line.strip()]
    if lines and len(lines[0]) == 1 and lines[0][0].isdigit():
        count, lines = int(lines[0][0]), lines[1:]
        if count != len(lines) - 1:
            raise UserError(f"{file} says {count} images and has {max(0, len(lines) - 1)}; get it again, whole")
    if not lines:
        raise UserError(f"{file} is empty; expected the attributes of every image")
    names = lines[0][1:] if len(lines) > 1 and len(lines[0]) == len(lines[1]) else lines[0]
    return names, (_values(file, names, line) for line in lines[1:])


def _values(file: Path, names: Sequence[str], line: Sequence[str]) -> tuple[str, list[bool]]:
    if len(line) != len(names) + 1 or not set(line[1:]) <= {"1", "-1", "0"}:
        raise UserError(f"{file}: {' '.join(line)[:80]!r} is not a file's name and {len(names)} values of 1 and -1")
    return line[0], [value == "1" for value in line[1:]]


def _label(value: bool) -> str:
    return "yes" if value else "no"


def celeba_concepts(faces: Faces, samples: int) -> dict[str, list[Concept]]:
    """Each attribute of each combination, against the same face with that attribute turned over; by `in` and `out` of
    distribution: `out` are those of the combination that was held out.
    """
    concepts: dict[str, list[Concept]] = {"in": [], "out": []}
    for values in product((True, False), repeat=len(faces.attributes)):
        for i, name in enumerate(faces.attributes):
            other = [not value if j == i else value for j, value in enumerate(values)]
            concept = Concept(
                name=f"{name}_in_{''.join('y' if value else 'n' for value in values)}",
                prompt=faces.caption(values),
                without_prompt=faces.caption(other),
                samples=samples,
                truth={name: _label(values[i])},
            )
            concepts["out" if values == faces.held_out else "in"].append(concept)
    return concepts
