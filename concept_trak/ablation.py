"""A model without the parameters that hold a concept: which are chosen, and the edited copy of the model directory.

    theta_i <- factor theta_i  for every chosen i        factor = 0 zeroes (CAD), in between suppresses softly

Chosen are those whose removal is predicted to move J the wanted way: erase takes positive alphas, amplify negative.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors.torch import load_file, save_file
from torch import Tensor

Masks = dict[str, Bool[Tensor, "..."]]


@dataclass(frozen=True)
class Choice:
    """How many parameters, and which are candidates."""

    by: str = "global"
    """`global`: the first of all candidates; `per_row`: of every row of every matrix (the published setting)."""
    ratio: float = 0.003
    """Share of the candidates, or of each row; above 0, at most 1."""
    pattern: str = ""
    """Searched in the parameter names; the published setting is `ff`."""

    def __post_init__(self) -> None:
        if self.by not in ("global", "per_row"):
            raise ValueError(f"edit.choice.by={self.by!r}; expected global or per_row")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"edit.choice.ratio={self.ratio}; expected a share above 0, at most 1")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"edit.choice.pattern={self.pattern!r} is not a regular expression: {error}") from None


def choose(scores: dict[str, Tensor], choice: Choice) -> Masks:
    """The parameters with the highest scores, of those only the positive: a mask for every tensor that has any.

    Raises:
        ValueError: the pattern or the ratio leaves nothing to choose.
    """
    found = {
        n: a for n, a in scores.items() if re.search(choice.pattern, n) and (choice.by == "global" or a.dim() == 2)
    }
    if not found:
        kind = "parameters" if choice.by == "global" else "matrices"
        raise ValueError(
            f"edit.choice.pattern={choice.pattern!r} matches none of the {kind}; expected a part of names such as: "
            f"{', '.join(list(scores)[:: max(1, len(scores) // 4)][:4])}"
        )
    masks = _first_of_all(found, choice.ratio) if choice.by == "global" else _first_of_rows(found, choice.ratio)
    chosen = {name: mask for name, mask in masks.items() if mask.any()}
    if not chosen:
        raise ValueError(
            f"edit.choice.ratio={choice.ratio} chooses no parameter ({_sizes(found, choice.by)}); raise it"
        )
    return chosen


def edited(state: dict[str, Tensor], masks: Masks, factor: float) -> dict[str, Tensor]:
    """The tensors with the chosen scalars multiplied by the factor."""
    return {n: torch.where(masks[n], (x * factor).to(x.dtype), x) if n in masks else x for n, x in state.items()}


def write(model: str, out: str, masks: Masks, factor: float, record: dict[str, Any]) -> None:
    """A copy of the model directory with the edit, and `edit.json` beside its weights; never over something.

    Raises:
        ValueError: `out` exists, or the directory does not hold the chosen tensors.
    """
    target = Path(out)
    if target.exists():
        raise ValueError(f"edit.out={out} exists; an edit overwrites nothing: delete it or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as room:
        copy = Path(room) / "model"
        shutil.copytree(model, copy)
        if missing := set(masks) - _rewritten(copy, masks, factor):
            raise ValueError(f"{model} holds no safetensors with {sorted(missing)[0]!r}; save the pipeline as such")
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        whole = {**record, "factor": factor, "edited": sum(counts.values()), "by_tensor": counts}
        (copy / "edit.json").write_text(json.dumps(whole, indent=2) + "\n")
        copy.rename(target)


def _rewritten(folder: Path, masks: Masks, factor: float) -> set[str]:
    """Every chosen name that was found in the network's files."""
    seen = set[str]()
    for file in sorted(file for part in ("unet", "transformer") for file in (folder / part).glob("*.safetensors")):
        state = load_file(file)
        if here := set(masks) & set(state):
            save_file(edited(state, masks, factor), file, metadata={"format": "pt"})
            seen |= here
    return seen


def _first_of_all(scores: dict[str, Tensor], ratio: float) -> Masks:
    flat = torch.cat([a.flatten() for a in scores.values()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(int(ratio * len(flat))).indices] = True
    parts = (mask & (flat > 0)).split([a.numel() for a in scores.values()])
    return {name: part.view(a.shape) for (name, a), part in zip(scores.items(), parts, strict=True)}


def _first_of_rows(scores: dict[str, Tensor], ratio: float) -> Masks:
    """int(ratio * in_features) of every row, then only alpha > 0 (as CAD publishes it)."""
    masks = {}
    for name, a in scores.items():
        best = a.topk(int(ratio * a.shape[1]), dim=1).indices
        masks[name] = torch.zeros_like(a, dtype=torch.bool).scatter(1, best, True) & (a > 0)
    return masks


def _sizes(scores: dict[str, Tensor], by: str) -> str:
    if by == "global":
        return f"{sum(a.numel() for a in scores.values())} candidates"
    widths = sorted({a.shape[1] for a in scores.values()})
    return f"rows of {widths[0]} to {widths[-1]}, of which the whole part of the ratio is taken"
