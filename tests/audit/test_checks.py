"""A model whose samples see each other is refused; rounding is not mistaken for that."""

import pytest
import torch
from torch import nn

from concept_trak.audit.checks import ROUNDING, batch_consistency, require_batch_consistency
from concept_trak.models import load_model, small
from tests.toys import Toy

TEXTS = ["a red circle", "a blue square", "a green triangle", "a red square", "", "a blue circle", "red", "square"]


@pytest.fixture(scope="module", params=["pixels", "latents", "patches"])
def path(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    {"pixels": small.pixel_pipeline, "latents": small.latent_pipeline, "patches": small.patch_pipeline}[request.param](
        0, resolution=16
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_real_pipelines_agree_up_to_rounding(path, dtype):
    found = require_batch_consistency(load_model(path, precision=str(dtype).removeprefix("torch.")), TEXTS)
    assert found < ROUNDING[dtype] / 2, (
        "the tolerance is nearly used up: measure it again before it refuses good models"
    )


def test_a_model_whose_samples_see_each_other_is_refused():
    toy, texts = Toy(), ["0", "1", "2"]
    assert require_batch_consistency(toy, texts) < ROUNDING[torch.float64]
    toy.network.norm = nn.BatchNorm2d(8).double()  # in training mode
    assert batch_consistency(toy, texts) > 0.01, "this toy does not mix its samples, so the refusal shows nothing"
    with pytest.raises(
        ValueError, match=r"between a batch of 3 and the sample alone by .* explains at most 1e-09.*model\.batch=1"
    ):
        require_batch_consistency(toy, texts)
    toy.network.norm.eval()
    assert require_batch_consistency(toy, texts) < ROUNDING[torch.float64], "statistics that stand mix nothing"


def test_a_prediction_that_is_no_number_is_refused():
    toy = Toy()
    with torch.no_grad():
        toy.network.shift.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite in torch\.float64 .*check the model's weights"):
        require_batch_consistency(toy, ["0", "1"])
