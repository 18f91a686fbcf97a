"""Pictures of every pair on one sheet, a strip for each pair, so that before and after can be laid side by side."""

import io

import torch
from PIL import Image

from concept_trak.counterfactual import Pictures
from concept_trak.data.image import png, to_png


def sheet(pictures: Pictures) -> bytes:
    """A PNG: one row for each pair, in their order, one column for each noise."""
    return to_png(torch.cat([torch.cat(list(row), 2) for row in pictures.values()], 1))


def strips(data: bytes, count: int) -> list[bytes]:
    """The rows of a sheet of so many pairs, each a PNG."""
    with Image.open(io.BytesIO(data)) as whole:
        side = whole.height // count
        return [png(whole.crop((0, i * side, whole.width, (i + 1) * side))) for i in range(count)]


def sheet_file(inquiry: str, concept: str, arm: str, ratio: float) -> str:
    """Where the sheet of a dose lies in the store; without an edit (`none`) it is that of every concept."""
    dose = arm if arm == "none" else f"{concept}-{arm}-{ratio:g}"
    return f"components/{inquiry}/pictures/{dose}.png"
