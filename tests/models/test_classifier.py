"""Classifier files: every architecture against a second writing of it, and what cannot be read or does not fit."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from concept_trak import UserError
from concept_trak.data.benchmarks.two_factors import SHAPES2, SHAPES3
from concept_trak.evaluation import judge
from concept_trak.models.classifier import open_classifier
from tests.models.classifiers import drawn, saved
from tests.toys import Toy

ROOT = Path(__file__).resolve().parents[2]
TOY = Toy()  # x_0 is [2, 6, 6]
LINEAR = {"weight": drawn(3, 72, seed=1), "bias": drawn(3, seed=2)}
MLP = {
    "hidden.weight": drawn(5, 72, seed=3), "hidden.bias": drawn(5, seed=4),
    "out.weight": drawn(3, 5, seed=5), "out.bias": drawn(3, seed=6),
}  # fmt: skip
CLASSES = ["red", "green", "blue"]
X = drawn(4, 2, 6, 6, seed=7)


def pixels(side: int) -> Toy:
    """A model of RGB pixels, as far as a classifier asks."""
    denoiser = Toy()
    denoiser.shape = (3, side, side)
    return denoiser


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def by_hand(architecture: str, x: torch.Tensor) -> list[float]:
    """Logits of one flat picture, by loops."""
    flat = x.flatten().tolist()
    if architecture == "linear":
        rows, bias = LINEAR["weight"].tolist(), LINEAR["bias"].tolist()
        return [sum(w * v for w, v in zip(row, flat, strict=True)) + b for row, b in zip(rows, bias, strict=True)]
    hidden = [
        sum(w * v for w, v in zip(row, flat, strict=True)) + b
        for row, b in zip(MLP["hidden.weight"].tolist(), MLP["hidden.bias"].tolist(), strict=True)
    ]
    bent = [z * sigmoid(z) for z in hidden]
    rows = zip(MLP["out.weight"].tolist(), MLP["out.bias"].tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, bent, strict=True)) + b for row, b in rows]


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("architecture", "weights"), [("linear", LINEAR), ("mlp", MLP)])
def test_a_head_on_x_0_is_what_its_file_says(architecture, weights, output):
    judge = open_classifier(saved(weights, architecture, CLASSES, output=output), "f", "green", TOY)
    for x, found in zip(X, judge(X).tolist(), strict=True):
        z = torch.tensor(by_hand(architecture, x), dtype=torch.float64)
        p = (z[1].exp() / z.exp().sum()).log() if output == "softmax" else (1 / (1 + (-z[1]).exp())).log()
        assert found == pytest.approx(p.item(), rel=1e-10)


def test_the_slope_of_a_head_is_that_of_finite_differences():
    judge = open_classifier(saved(MLP, "mlp", CLASSES), "f", "blue", TOY)
    x = X[:1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(judge(x).sum(), x)
    for i in (0, 17, 71):
        step = torch.zeros_like(X[:1]).flatten().index_fill(0, torch.tensor(i), 1e-6).reshape(X[:1].shape)
        expected = (judge(X[:1] + step) - judge(X[:1] - step)).item() / 2e-6
        assert slope.flatten()[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kinds", [SHAPES3, SHAPES2], ids=["shapes3", "shapes2"])
def test_a_classifier_of_jobs_train_is_read_by_its_sizes(kinds, tmp_path):
    made = judge.Classifier(kinds).requires_grad_(False)
    judge.save_classifier(made, tmp_path / "c.safetensors")
    data, x = (tmp_path / "c.safetensors").read_bytes(), drawn(2, 3, 16, 16).tanh()
    made.double()
    for names, heads in ((kinds.things, made(x)[0]), (kinds.looks, made(x)[1])):
        for i, name in enumerate(names):
            found = open_classifier(data, "c", name, pixels(16))(x)
            torch.testing.assert_close(found, heads.softmax(1)[:, i].log())


def test_the_trunk_with_a_head_of_ones_own():
    made = judge.Classifier(SHAPES3).double().requires_grad_(False)
    trunk = {name: w for name, w in made.state_dict().items() if name.startswith("trunk.")}
    head = {"head.weight": drawn(2, 64, seed=1), "head.bias": drawn(2, seed=2)}
    x = drawn(2, 3, 16, 16).tanh()
    no = open_classifier(saved(trunk | head, "convolutional", ["yes", "no"]), "c", "no", pixels(16))
    seen = made.trunk(x).mean(dim=(2, 3))
    torch.testing.assert_close(no(x), (seen @ head["head.weight"].T + head["head.bias"]).log_softmax(1)[:, 1])


def test_the_shipped_classifier_knows_red():
    path = ROOT / "assets/demo/classifier.safetensors"
    images, shown = judge.labelled_drawings(0, 0, 12)
    red = open_classifier(path.read_bytes(), str(path), "red", pixels(32))
    assert ((red(images).exp() > 0.5) == (shown[:, 1] == 0)).all()


REFUSALS = [
    (saved(LINEAR, "linear", CLASSES), "yellow", r"f has no class 'yellow'; expected one of: red, green, blue"),
    (saved(LINEAR, "linear", ["a", "b"]), "a", r"f has 3 outputs and names 2 classes"),
    (saved(LINEAR, "transformer", CLASSES), "red", r"architecture='transformer', output='softmax' in its metadata"),
    (saved(LINEAR, "thing", CLASSES), "red", r"expected linear, mlp or convolutional"),
    (saved(LINEAR, "linear", CLASSES, output="exp"), "red", r"output='exp' in its metadata"),
    (save(LINEAR), "red", r"architecture='', output='softmax' in its metadata; expected"),
    (save(LINEAR, {"architecture": "linear"}), "red", r"f does not name its classes; expected metadata classes="),
    (save(LINEAR, {"architecture": "linear", "classes": "red, green"}), "red", r"does not name its classes"),
    (saved({**LINEAR, "weight": drawn(3, 12)}, "linear", CLASSES), "red", r"linear classifier of .* x_0, \[2, 6, 6\]"),
    (saved({"weight": drawn(3, 72)}, "linear", CLASSES), "red", r"no linear classifier of this model's x_0"),
    (saved(LINEAR, "mlp", CLASSES), "red", r"no mlp classifier of this model's x_0"),
    ((ROOT / "assets/demo/classifier.safetensors").read_bytes(), "red", r"train it on what the model denoises: its"),
    (pickle.dumps({"weight": [1.0]}), "red", r"f is no safetensors file .*pickled weights can run code"),
    (b"", "red", r"f is no safetensors file"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "shows", "message"), REFUSALS, ids=[m for _, _, m in REFUSALS])
def test_a_file_that_cannot_judge_is_refused(data, shows, message):
    with pytest.raises(UserError, match=message):
        open_classifier(data, "f", shows, TOY)
