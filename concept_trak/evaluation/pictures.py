"""The pictures that a model generates for every pair of a two-factor data set, and their form as Parquet."""

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.query import UNGUIDED
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import generate
from concept_trak.data.benchmarks.two_factors import Pair, TwoFactors, pair_caption
from concept_trak.store.tables import from_rows, read_parquet, to_parquet

Pictures = dict[Pair, Float[Tensor, "m 3 h w"]]
"""By pair, m pictures for its caption, in [-1, 1]. Picture i of every pair starts from the same noise."""
PICTURE_COLUMNS = {"thing": "string", "colour": "string", "number": "int32", "height": "int32", "width": "int32",
                   "pixels": "vector"}  # fmt: skip


def draw_pictures(
    denoiser: Denoiser, kinds: TwoFactors, samples: int, at_once: int = 256, seed: int = 0, path: Probe = UNGUIDED
) -> Pictures:
    """Generate `samples` pictures of every pair, without guidance unless `path` has some.

    The noise depends only on the seed and the picture's number, so that pictures of two models can be compared.

    Args:
        denoiser: the model.
        kinds: the data set.
        samples: pictures of each pair.
        at_once: pictures in one batch.
        seed: the seed of the noise.
        path: the points of the DDIM grid and the guidance.
    """
    ids = tuple(f"picture-{i}" for _ in kinds.all_pairs for i in range(samples))
    cond = denoiser.encode([pair_caption(*pair) for pair in kinds.all_pairs for _ in range(samples)])
    batch, parts = Batch(ids=ids, cond=cond, negative=cond), list[Tensor]()
    for i in range(0, len(ids), at_once):
        x_0 = generate(denoiser, batch.rows(slice(i, i + at_once)), path, seed)
        parts.append(denoiser.to_pixels(x_0).float().cpu().clamp(-1, 1))
    return dict(zip(kinds.all_pairs, torch.cat(parts).split(samples), strict=True))


def pictures_to_parquet(pictures: Pictures) -> bytes:
    """A Parquet file with one row for each picture; its pixels are flattened from [3, height, width]."""
    rows = [
        {"thing": thing, "colour": colour, "number": number, "height": x.shape[1], "width": x.shape[2],
         "pixels": x.flatten().numpy()}
        for (thing, colour), batch in pictures.items()
        for number, x in enumerate(batch)
    ]  # fmt: skip
    return to_parquet(from_rows(PICTURE_COLUMNS, rows))


def pictures_from_parquet(data: bytes) -> Pictures:
    """The pictures that `pictures_to_parquet` wrote."""
    pictures: dict[Pair, list[Tensor]] = {}
    for row in read_parquet(data).to_pylist():
        x = torch.tensor(row["pixels"]).view(3, row["height"], row["width"])
        pictures.setdefault((row["thing"], row["colour"]), []).append(x)
    return {pair: torch.stack(batch) for pair, batch in pictures.items()}
