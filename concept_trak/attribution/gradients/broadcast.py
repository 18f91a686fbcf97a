"""Parameters that a module combines with its samples itself: tables of shifts, gates, padding tokens.

No layer with a rule holds such a parameter, and its module may hold whole blocks, which would be run again for every
sample. The parameter is broadcast over the samples, so its gradient is a sum over them. While a batch is recorded,
the module gets the parameter as a `FollowedParameter`, which is repeated for each row before it meets the batch:

    y = f(view(p), x) becomes y = f(u, x), u_i = view(p)        G_i = (d view / d p)^T dL / du_i

f must be elementwise; `view` is any function of p alone. The values of y are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from concept_trak.attribution.gradients.factors import DenseGradient, ParameterGradient
from concept_trak.attribution.gradients.layer_rules import has_rule
from concept_trak.attribution.gradients.rows import RowOrder
from concept_trak.attribution.gradients.workspace import LayerNames
from concept_trak.attribution.numerics import at_least_float32

FEW = 4
"""A module without a rule that holds at most so many layers is replayed instead, which costs little."""
NAMES = ("add", "sub", "mul", "div", "where", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__",
         "__mul__", "__rmul__", "__imul__", "__truediv__")  # fmt: skip
ELEMENTWISE = {getattr(home, name) for home in (torch, Tensor) for name in NAMES if hasattr(home, name)}


@dataclass(frozen=True)
class BroadcastUse:
    """One place where a parameter meets a batch.

    Attributes:
        name: of the parameter in the model.
        parameter: it.
        view: the function of it that meets the batch, with its graph.
        output: the view, repeated for each row of the batch [rows, ...].
    """

    name: str
    parameter: Tensor
    view: Tensor
    output: Tensor

    @property
    def names(self) -> dict[str, str]:
        return {self.name: self.name}

    def gradients(self, g: Tensor, b: int, order: RowOrder | None) -> dict[str, ParameterGradient]:
        """As `LayerUse.gradients`."""
        g = g if order is None else order.gradient(g)
        sums = at_least_float32(g).reshape(b, -1, *g.shape[1:]).sum(1).to(g.dtype).reshape(b, *self.view.shape)
        with torch.enable_grad():
            rows = [torch.autograd.grad(self.view, self.parameter, own, retain_graph=True)[0] for own in sums]
        return {self.name: DenseGradient(torch.stack(rows))}


@dataclass
class Following:
    """What became of one parameter of one module in a forward pass."""

    name: str
    parameter: Tensor
    uses: list[BroadcastUse] = field(default_factory=list)
    is_lost: bool = False  # it met the batch in a way that is no broadcasting

    def use(self, view: Tensor, rows: int) -> Tensor:
        """The view [1, ...] repeated for each row [rows, ...], noted as a use."""
        repeated = view.expand(rows, *view.shape[1:])
        self.uses.append(BroadcastUse(name=self.name, parameter=self.parameter, view=view, output=repeated))
        return repeated

    def splits(self, b: int) -> bool:
        """Whether each use can have rows of its own for each of b samples."""
        outputs = [use.output for use in self.uses]
        return bool(outputs) and not self.is_lost and all(y.requires_grad and len(y) >= b for y in outputs)


class FollowedParameter(Tensor):
    """A function of one parameter. Where it meets other tensors, `following` records it."""

    plain: Tensor
    following: Following

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [a for a in tree_flatten((args, kwargs or {}))[0] if isinstance(a, Tensor)]
        followed = [a for a in tensors if isinstance(a, FollowedParameter)]
        if len(tensors) == 1:
            result, following = _call(func, args, kwargs), followed[0].following
            return tree_map(lambda y: _follow(y, following) if isinstance(y, Tensor) else y, result)
        if len(followed) == 1 and func in ELEMENTWISE:
            (parameter,) = followed
            shape = torch.broadcast_shapes(*(_unfollowed(a).shape for a in tensors))
            view = parameter.plain[(None,) * (len(shape) - parameter.plain.dim())]
            if view.shape[0] == 1:
                return _call(func, args, kwargs, parameter.following.use(view, shape[0]))
        for other in followed:
            other.following.is_lost = True
        return _call(func, args, kwargs)


def _follow(value: Tensor, following: Following) -> FollowedParameter:
    followed = value.detach().as_subclass(FollowedParameter)
    followed.plain, followed.following = value, following
    return followed


def _unfollowed(value: Any) -> Any:
    return value.plain if isinstance(value, FollowedParameter) else value


def _call(func: Any, args: Any, kwargs: Any, repeated: Tensor | None = None) -> Any:
    """The function of plain tensors; `repeated` takes the place of a parameter."""

    def plain(value: Any) -> Any:
        is_replaced = repeated is not None and isinstance(value, FollowedParameter)
        return repeated if is_replaced else _unfollowed(value)

    args, kwargs = tree_map(plain, (args, kwargs or {}))
    return func(*args, **kwargs)


@contextmanager
def followed_parameters(layers: LayerNames) -> Iterator[dict[nn.Module, dict[str, Following]]]:
    """Follow the parameters that large modules without a rule own, by module and name, until the block ends."""
    owners = {m: names for m, names in layers.items() if not has_rule(m) and _is_large(m)}
    # The dict is annotated with parameters; a module reads any tensor from it.
    tensors: dict[nn.Module, dict[str, Any]] = {m: m._parameters for m in owners}
    followings = {m: {n: Following(name, tensors[m][n]) for n, name in names.items()} for m, names in owners.items()}
    places = [(tensors[m], n, following) for m, own in followings.items() for n, following in own.items()]
    for own, n, following in places:
        own[n] = _follow(following.parameter, following)
    try:
        yield followings
    finally:
        for own, n, following in places:
            own[n] = following.parameter


def _is_large(module: nn.Module) -> bool:
    layers = (m for m in module.modules() if m is not module and m._parameters)
    return len(list(islice(layers, FEW + 1))) > FEW
