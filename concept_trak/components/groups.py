"""Groups of parameters (rows, attention heads, tensors), and the tables of their alphas.

The alpha of a group is the sum of its scalars' (exact, since alphas are first order).
"""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.components.measure import Measurement

GROUPS = {"concept": "string", "objective": "string", "granularity": "string", "tensor": "string", "head": "int32",
          "row": "int32", "parameters": "int64", "alpha": "float64", "alpha_positive": "float64",
          "alpha_negative": "float64", "se_seeds": "float64", "se_states": "float64", "z": "float64",
          "z_states": "float64", "seeds": "int32", "states": "int32"}  # fmt: skip
TOP = {"concept": "string", "objective": "string", "end": "string", "rank": "int32", "tensor": "string",
       "row": "int32", "column": "int32", "theta": "float64", "gradient": "float64", "alpha": "float64"}  # fmt: skip
GRANULARITIES = ("scalar", "row", "head", "tensor")
"""row: an output neuron or channel; head: the rows of one attention head in `to_q`, `to_k` or `to_v`."""
Heads = dict[str, int]
"""How many heads share a parameter's rows, by its name; absent where none do."""


def heads_of(network: nn.Module) -> Heads:
    """The heads of every attention module with a number of `heads`, as diffusers' have."""
    heads = Heads()
    for path, module in network.named_modules():
        if isinstance(count := getattr(module, "heads", None), int):
            own = (name for name, _ in module.named_parameters() if name.split(".")[0] in ("to_q", "to_k", "to_v"))
            heads.update({f"{path}.{name}": count for name in own})
    return heads


def as_groups(x: Tensor, granularity: str, heads: int | None = None) -> Float[Tensor, "groups size"]:
    """A parameter's scalars by group. The rows of a vector are its scalars; a tensor without heads has no groups."""
    if granularity == "head":
        return x.reshape(heads, -1) if heads else x.new_zeros(0, x.numel())
    groups = {"scalar": x.numel(), "row": len(x) if x.dim() else 1, "tensor": 1}[granularity]
    return x.reshape(groups, -1)


def group_rows(alphas: dict[str, Tensor], measurement: Measurement, heads: Heads) -> Iterable[dict[str, Any]]:
    """A row for every tensor, head, and row of a tensor with more than one axis: the group's alpha and its errors.

    Standard errors are of the mean: over the trajectories' means, and over all states as if they were independent
    (states of one trajectory are not). z = alpha / se_seeds, z_states = alpha / se_states. Unknown values are null.
    """
    for name, a in alphas.items():
        states, rows = measurement.rows[name], as_groups(a.double(), "row")
        kinds = ["tensor", *(["head"] if name in heads else []), *(["row"] if a.dim() > 1 else [])]
        for kind in kinds:
            scalars = as_groups(a.double(), kind, heads.get(name))
            by_state = states.reshape(len(states), len(scalars), -1).sum(2) if kind != "row" else states
            assert kind != "row" or len(scalars) == len(rows)
            for i, own in enumerate(scalars):
                index = {} if kind == "tensor" else {kind: i}
                yield {
                    "granularity": kind,
                    "tensor": name,
                    **index,
                    **_line(by_state[:, i], own, measurement.trajectories),
                }


def top_scalar_rows(
    parameters: dict[str, Tensor], alphas: dict[str, Tensor], measurement: Measurement, top: int
) -> Iterable[dict[str, Any]]:
    """The `top` largest positive and negative alphas of all parameters, with their positions."""
    for end, sign in (("positive", 1), ("negative", -1)):
        best = [_best(name, sign * a.flatten(), top) for name, a in alphas.items()]
        ordered = sorted((row for each in best for row in each), key=lambda row: (-row[0], row[1], row[2]))
        for rank, (_, name, i) in enumerate(ordered[:top], 1):
            width = as_groups(alphas[name], "row").shape[1]
            values = {"theta": parameters[name].detach(), "gradient": measurement.gradient[name], "alpha": alphas[name]}
            numbers = {key: float(value.flatten()[i]) for key, value in values.items()}
            yield {"end": end, "rank": rank, "tensor": name, "row": i // width, "column": i % width, **numbers}


def _line(states: Float[Tensor, " n"], scalars: Tensor, trajectories: int) -> dict[str, Any]:
    of_each = states.reshape(trajectories, -1).mean(1)
    value, se, se_states = states.mean().item(), _error(of_each), _error(states)
    parts = {"alpha_positive": scalars.clamp(min=0).sum().item(), "alpha_negative": scalars.clamp(max=0).sum().item()}
    errors = {"se_seeds": se, "se_states": se_states}
    errors |= {"z": value / se if se else None, "z_states": value / se_states if se_states else None}
    counts = {"seeds": trajectories, "states": len(states)}
    return {"parameters": scalars.numel(), "alpha": value, **parts, **errors, **counts}


def _error(values: Float[Tensor, " n"]) -> float | None:
    return None if len(values) < 2 else (values.std() / len(values) ** 0.5).item()


def _best(name: str, values: Tensor, top: int) -> list[tuple[float, str, int]]:
    largest = values.topk(min(top, len(values)))
    return [(v, name, i) for v, i in zip(largest.values.tolist(), largest.indices.tolist(), strict=True) if v > 0]
