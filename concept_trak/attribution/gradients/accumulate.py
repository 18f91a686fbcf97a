"""Running sums of per-sample gradients, projected by P, and the norms that divide the gradients before they are added.

P is linear, so one projection of the sum suffices. `mask` and `kronecker` need few numbers of a gradient and take them
from its factors; their sums are narrow from the start.

Where a model is divided among devices, a gradient and its sum are on the device of its parameter. Only norms and
finished sums are moved, to the device of the first parameter.

Gradients are handled one after another. A norm may need a gradient in dense form. The sum then uses that form at once
and drops it, because fresh memory costs more than the product that fills it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import layer_of
from concept_trak.attribution.gradients.factors import DenseGradient, ParameterGradient
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.numerics import at_least_float32
from concept_trak.attribution.projector import Projector, Tables, sketch

NEGLIGIBLE = 1e-5
"""A layer's norm below this share of the whole gradient's norm is rounding error. An example is the key matrix of an
attention over a single token, whose exact gradient is 0."""
Reduce = Callable[[str, ParameterGradient], ParameterGradient]


class FeatureSum(ABC):
    """A running sum of b samples' gradients, projected by P; 0 at first. `add` and `phi` may be called in any order."""

    def add(
        self,
        gradients: Mapping[str, ParameterGradient],
        factor: Float[Tensor, " b"],
        norm: str = "none",
        exponent: float = 1.0,
    ) -> None:
        """Add each sample's gradients times its factor.

        Args:
            gradients: by parameter name.
            norm: `all` divides each sample's gradients by their norm over all parameters, `layer` divides those of
                each layer by the layer's norm, and `none` leaves them as they are.
            exponent: for `layer`, the exponent of the layer's norm (see `gradient_norms`).
        """
        if norm == "none":
            for name, gradient in gradients.items():
                self._add(name, self._reduced(name, gradient), factor)
            return
        norms, reduced = gradient_norms(gradients, norm, self._reduced, exponent)
        rates = {group: factor.to(n.device) * torch.where(n > 0, 1 / n, 0) for group, n in norms.items()}
        for name, gradient in reduced.items():
            self._add(name, gradient, rates[norm_group(name, norm)])

    @abstractmethod
    def phi(self) -> Float[Tensor, "b k"]:
        """P of the sum so far."""

    @abstractmethod
    def _reduced(self, name: str, gradient: ParameterGradient) -> ParameterGradient:
        """The part of a gradient that the sum needs."""

    @abstractmethod
    def _add(self, name: str, reduced: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        """Add the result of `_reduced`, times each sample's factor."""


class FullSum(FeatureSum):
    """For any P: the sum at full width, in float32 or wider.

    Args:
        memories: by device, at least b times as many numbers as its parameters have together; the largest tensors that
            a batch needs.
    """

    def __init__(
        self,
        projector: Projector,
        parameters: Mapping[str, Tensor],
        b: int,
        tables: Tables,
        memories: Mapping[torch.device, Tensor],
    ) -> None:
        self._projector, self._tables = projector, tables
        self._shapes = {name: (b, *p.shape) for name, p in parameters.items()}
        self._sums: dict[str, Tensor] = {}
        self._unused: dict[str, Tensor] = {}
        for device, own in _by_device(parameters).items():
            sizes = [b * p.numel() for p in own.values()]
            self._unused |= zip(own, memories[device][: sum(sizes)].split(sizes), strict=True)

    def _reduced(self, name: str, gradient: ParameterGradient) -> ParameterGradient:
        return gradient

    def _add(self, name: str, reduced: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        memory = self._unused.pop(name, None)
        if memory is not None:
            self._sums[name] = reduced.as_sum(memory)
        total = self._sums[name]
        reduced.add_to(total, factor.to(total.device), overwrite=memory is not None)

    def phi(self) -> Float[Tensor, "b k"]:
        zeros = {name: memory.zero_().view(self._shapes[name]) for name, memory in self._unused.items()}
        sums = self._sums | zeros
        return self._projector(_on_one_device({name: sums[name] for name in self._shapes}), self._tables)


class MaskSum(FeatureSum):
    """For `mask`: the sum of the coordinates that P keeps, taken from the factors of a gradient."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int, tables: Tables) -> None:
        sizes = tuple((name, p.numel()) for name, p in parameters.items())
        first = next(iter(parameters.values()))
        coordinates = tables.coordinates(sizes, projector.dim, projector.seed, first.device)
        self._coordinates = {
            name: (at.to(parameters[name].device), column) for name, (at, column) in coordinates.items() if at.numel()
        }
        self._sum = at_least_float32(first.new_zeros(b, projector.dim))
        self._nothing = DenseGradient(self._sum[:, :0])
        self._scale = (sum(size for _, size in sizes) / projector.dim) ** 0.5

    def _reduced(self, name: str, gradient: ParameterGradient) -> ParameterGradient:
        place = self._coordinates.get(name)
        return self._nothing if place is None else DenseGradient(gradient.entries(place[0]))

    def _add(self, name: str, reduced: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        if (place := self._coordinates.get(name)) is not None:
            self._sum[:, place[1]] += reduced.dense().to(self._sum.device) * factor.to(self._sum)[:, None]

    def phi(self) -> Float[Tensor, "b k"]:
        return self._sum * self._scale


class KroneckerSum(FeatureSum):
    """For `kronecker`: the sum of S_o^T G S_i of every matrix, taken from a gradient's factors, and then one sketch."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int, tables: Tables) -> None:
        self._projector, self._tables = projector, tables
        like = at_least_float32(next(iter(parameters.values())).new_empty(0))
        self._factors = {
            name: tables.kronecker_factors(name, p.shape, projector.seed, like.dtype, p.device)
            for name, p in parameters.items()
            if p.dim() > 1
        }
        self._sums = {
            name: torch.zeros(b, *self._shape(name, p), dtype=like.dtype, device=p.device)
            for name, p in parameters.items()
        }

    def _shape(self, name: str, p: Tensor) -> tuple[int, ...]:
        return tuple(side.shape[1] for side in self._factors[name]) if name in self._factors else p.shape

    def _reduced(self, name: str, gradient: ParameterGradient) -> ParameterGradient:
        if name in self._factors:
            return DenseGradient(gradient.two_sided(*self._factors[name]))
        return DenseGradient(at_least_float32(gradient.dense()))

    def _add(self, name: str, reduced: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        total = self._sums[name]
        reduced.add_to(total, factor.to(total.device))

    def phi(self) -> Float[Tensor, "b k"]:
        return sketch(_on_one_device(self._sums), self._projector.dim, self._projector.seed, self._tables)


NARROW_SUMS: dict[str, type[MaskSum] | type[KroneckerSum]] = {"mask": MaskSum, "kronecker": KroneckerSum}
"""The sum of a projector that has one of its own. It equals P of the full sum, with P as in `PROJECTORS`."""


@contextmanager
def feature_sums(
    projector: Projector, parameters: Mapping[str, Tensor], b: int, count: int, workspace: Workspace
) -> Iterator[list[FeatureSum]]:
    """Lend `count` sums over b samples' gradients of `parameters`; their memory is free again after the block."""
    if projector.kind in NARROW_SUMS:
        kind = NARROW_SUMS[projector.kind]
        yield [kind(projector, parameters, b, workspace.tables) for _ in range(count)]
        return
    like = at_least_float32(next(iter(parameters.values())).new_empty(0))
    numbers = {device: b * sum(p.numel() for p in own.values()) for device, own in _by_device(parameters).items()}
    with ExitStack() as stack:
        memories = [
            {device: stack.enter_context(workspace.memory(n, like.to(device))) for device, n in numbers.items()}
            for _ in range(count)
        ]
        yield [FullSum(projector, parameters, b, workspace.tables, own) for own in memories]


def _by_device(parameters: Mapping[str, Tensor]) -> dict[torch.device, dict[str, Tensor]]:
    groups: dict[torch.device, dict[str, Tensor]] = {}
    for name, p in parameters.items():
        groups.setdefault(p.device, {})[name] = p
    return groups


def _on_one_device(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums on the device of the first."""
    device = next(iter(sums.values())).device
    return {name: total.to(device) for name, total in sums.items()}


def norm_group(name: str, norm: str) -> str:
    """The group whose norm divides this parameter's gradient: its layer for `layer`, one group of all for `all`."""
    return layer_of(name) if norm == "layer" else norm


def gradient_norms(
    gradients: Mapping[str, ParameterGradient],
    norm: str,
    reduce: Reduce = lambda name, gradient: gradient,
    exponent: float = 1.0,
) -> tuple[dict[str, Float[Tensor, " b"]], dict[str, ParameterGradient]]:
    """Each sample's Euclidean norms, and every gradient after `reduce`.

    Args:
        norm: `all` for one norm over all parameters, `layer` for one norm over the parameters of each layer.
        reduce: called with every parameter's name and gradient. It gets the dense gradient where the norm formed it.
        exponent: for `layer`, p in (0, 1]: |g_l|^p |g|^(1-p) replaces the norm |g_l| of a layer.

    Returns:
        (norms by group, reduced gradients by parameter name). A layer's norm below `NEGLIGIBLE` times the whole norm
        is 0.
    """
    vectors = {
        n: g.value for n, g in gradients.items() if norm == "all" and isinstance(g, DenseGradient) and g.is_vector
    }
    squares = [DenseGradient(torch.cat([*v.values()], 1)).squared_norm() for v in _by_device(vectors).values()]
    by_group: dict[str, list[Tensor]] = {}
    reduced: dict[str, ParameterGradient] = {}
    for name, gradient in gradients.items():
        if name not in vectors:
            if not gradient.norm_is_cheaper_in_factors:
                gradient = DenseGradient(gradient.dense())
            squares.append(gradient.squared_norm())
            by_group.setdefault(norm_group(name, norm), []).append(squares[-1])
        reduced[name] = reduce(name, gradient)
    whole = _root_of_sum(squares)
    if norm == "all":
        return {norm: whole}, reduced
    norms = {group: _root_of_sum(own) for group, own in by_group.items()}
    norms = {
        group: torch.where(n.to(whole.device) > NEGLIGIBLE * whole, n.to(whole.device), 0) for group, n in norms.items()
    }
    if exponent != 1:
        norms = {group: n**exponent * whole ** (1 - exponent) for group, n in norms.items()}
    return norms, reduced


def _root_of_sum(squares: Sequence[Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
    return torch.stack([s.to(squares[0].device) for s in squares]).sum(0).sqrt()
