"""A score split over the layers of the model: this image taught the concept through these layers.

    s_i = w_i phi_i . z = sum_j s_ij,        s_ij = w_i sum over the columns c of layer j of phi_ic z_c

The split is exact, with the whole curvature in z, if each column of phi belongs to one parameter. This holds for
`identity` and `mask`, whose columns are coordinates. The other projectors mix layers in a column.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import layer_of
from concept_trak.attribution.projector import Projector, mask_coordinates

SPLIT = ("identity", "mask")


@dataclass(frozen=True)
class LayerColumns:
    """The layers of a model, and for each column of phi the number of its layer."""

    names: tuple[str, ...]
    of_column: Int64[Tensor, " k"]

    def split(
        self, phi: Float[Tensor, "n k"], weight: Float[Tensor, " n"], z: Float[Tensor, " k"]
    ) -> Float[Tensor, "n layers"]:
        """s_ij, in float64."""
        parts = weight.double()[:, None] * phi.double() * z.double()
        return parts.new_zeros(len(phi), len(self.names)).index_add_(1, self.of_column, parts)


def layer_columns(projector: Projector, sizes: Mapping[str, int]) -> LayerColumns:
    """The layer of each column of phi.

    Args:
        projector: the projector of the features.
        sizes: number of scalars of each attributable parameter, by name in the model's order.

    Raises:
        UserError: the projector mixes layers.
    """
    if projector.kind not in SPLIT:
        raise UserError(
            f"projector={projector.kind} mixes all layers in each of its columns, so that a score cannot be split over "
            f"them; make the audit with one of: {', '.join(f'projector={kind}' for kind in SPLIT)}"
        )
    names = layer_names(sizes)
    number = {name: names.index(layer_of(name)) for name in sizes}
    if projector.kind == "identity":
        return LayerColumns(names, torch.cat([torch.full((size,), number[name]) for name, size in sizes.items()]))
    column = torch.zeros(projector.dim, dtype=torch.int64)
    coordinates = mask_coordinates(tuple(sizes.items()), projector.dim, projector.seed, column.device)
    for name, (_, columns) in coordinates.items():
        column[columns] = number[name]
    return LayerColumns(names, column)


def layer_names(sizes: Iterable[str]) -> tuple[str, ...]:
    """The names of the parameters' layers, each once, in the model's order."""
    return tuple(dict.fromkeys(map(layer_of, sizes)))


def block_of(layer: str) -> str:
    """The part of the network that has a layer or parameter: `up_blocks.1`, `mid_block`, `conv_in`."""
    first, _, rest = layer.partition(".")
    second = rest.partition(".")[0]
    return f"{first}.{second}" if second.isdigit() else first
