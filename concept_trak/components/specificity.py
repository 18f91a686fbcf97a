"""Benefit and price: what an edit of a parameter does to a concept, and what it does to reference concepts.

g is the gradient of the concept's J (of -J for an edit that raises J); g_r, F_r are those of the references:

    none                 benefit  theta_i g_i                                        CAD: ignores the references
    margin               benefit  theta_i g_i - max_r theta_i g_r,i                  minus the worst-hit reference's
    surgery              benefit  theta_i (g - G (G^T G)^+ G^T g)_i                  g without its part along the g_r
    surgery_by_tensor    the same within every tensor
    reach                benefit  theta_i g_i,    price  theta_i^2 mean_r F_r,i      chosen by benefit per price

The price of `reach` is, to first order and without cross terms, the mean square by which the references' predictions
move. `margin` has the difference of COAR's edits (Shah et al. 2024), `surgery` the projection of Yu et al. (2020,
"Gradient Surgery for Multi-Task Learning"), here off the span of all references.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.components.measure import Measurement

AGAINST = ("none", "margin", "surgery", "surgery_by_tensor", "reach")
ByParameter = dict[str, Tensor]


@dataclass(frozen=True)
class BenefitAndPrice:
    """Of every scalar, by parameter name: the predicted gain of zeroing it, and its price (None: the row has none)."""

    benefit: ByParameter
    price: ByParameter | None = None


def benefit_and_price(
    against: str, theta: ByParameter, target: ByParameter, references: Sequence[Measurement]
) -> BenefitAndPrice:
    """Benefit and price by a row of `AGAINST`.

    Args:
        theta: the parameters.
        target: the gradient g.
        references: measured with the objective `reference_objective`.

    Raises:
        UserError: the row needs references and there are none.
    """
    if against == "none":
        return BenefitAndPrice(_times(theta, target))
    if not references:
        raise UserError(
            f"edit.choice.against={against} compares a concept with others, and references are empty; name what an "
            "edit should preserve: references=[{name: green, prompt: a green square, without_prompt: a square}, ...]"
        )
    if against == "reach":
        mean = {n: torch.stack([r.gradient[n] for r in references]).mean(0) for n in target}
        return BenefitAndPrice(_times(theta, target), {n: theta[n].square() * f for n, f in mean.items()})
    if against == "margin":
        worst = {n: torch.stack([theta[n] * r.gradient[n] for r in references]).amax(0) for n in target}
        return BenefitAndPrice({n: a - worst[n] for n, a in _times(theta, target).items()})
    names = [[n] for n in target] if against == "surgery_by_tensor" else [list(target)]
    parts = [off_span({n: target[n] for n in block}, [r.gradient for r in references]) for block in names]
    return BenefitAndPrice(_times(theta, {n: g for part in parts for n, g in part.items()}))


def reference_objective(against: str, objective: str) -> str:
    """The objective that references are measured with."""
    return "reach" if against == "reach" else objective


def off_span(gradient: ByParameter, others: Sequence[ByParameter]) -> ByParameter:
    """g minus its orthogonal projection on the span of `others`, over all of g's tensors at once."""
    columns = {n: torch.stack([o[n].flatten().double() for o in others], 1) for n in gradient}
    gram = torch.stack([c.T @ c for c in columns.values()]).sum(0)
    along = torch.stack([columns[n].T @ g.flatten().double() for n, g in gradient.items()]).sum(0)
    weight = torch.linalg.pinv(gram, hermitian=True) @ along
    return {n: g - (columns[n] @ weight).view_as(g).to(g) for n, g in gradient.items()}


def _times(theta: ByParameter, gradient: ByParameter) -> ByParameter:
    return {n: theta[n].to(g) * g for n, g in gradient.items()}
