"""A model whose scheduler names another prediction type than it was trained with gives nonsense: it is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Prediction
from concept_trak.audit.checks import prediction_errors, require_batch_consistency, require_fit, warn_of_prediction_type
from concept_trak.config import DataConfig
from concept_trak.data.shard import Shard, cut
from concept_trak.data.survey import survey
from concept_trak.models import load_model, small
from concept_trak.models.gaussian import Gaussian, Settings
from jobs.shapes import ShapesConfig, shapes

DEMO = Path(__file__).resolve().parents[2] / "assets/demo"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Shard, DataConfig]:
    folder = tmp_path_factory.mktemp("shapes")
    shapes(ShapesConfig(str(folder), rows=4, files=1))
    config = DataConfig(uri=str(folder), id_column="id")
    return cut(survey(config).sources[0], 2)[0], config


def configured(tmp_path: Path, prediction_type: str) -> str:
    """The demo, which predicts v, with another word in its scheduler."""
    model = shutil.copytree(DEMO, tmp_path / "model")
    file = model / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": prediction_type}))
    return str(model)


def test_a_v_model_with_an_epsilon_scheduler_is_named(tmp_path, data, caplog):
    text = warn_of_prediction_type(load_model(configured(tmp_path, "epsilon")), *data)
    assert "prediction_type is epsilon" in text
    assert "fit v_prediction far better" in text
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [text]


def test_a_model_that_is_configured_as_it_was_trained_is_not(data, caplog):
    denoiser = load_model(str(DEMO))
    assert warn_of_prediction_type(denoiser, *data) == ""
    assert not caplog.records
    x_0 = torch.zeros(2, *denoiser.shape)
    assert set(prediction_errors(denoiser, x_0, denoiser.encode(["a red square"] * 2))) == {
        "epsilon", "v_prediction", "sample"}  # fmt: skip


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_untrained_model_is_not_accused(tmp_path, data, prediction_type):
    pipe = small.pixel_pipeline(0, 16)
    pipe.register_modules(scheduler=small.scheduler(prediction_type))
    pipe.save_pretrained(tmp_path)
    assert warn_of_prediction_type(load_model(str(tmp_path)), *data) == ""


class Misread(Gaussian):
    """The optimal network of one prediction type, whose output is read as that of another."""

    def __init__(self, trained: str, prediction_type: str) -> None:
        super().__init__(Settings(shape=(3, 4, 4), spread=0.3))
        self.trained, self.prediction_type = trained, prediction_type

    def __call__(self, x_t: Tensor, t: int, cond: Condition) -> Prediction:
        x_0, eps = super().__call__(x_t, t, cond)
        alpha, sigma = self.alpha[t].item(), self.sigma[t].item()
        output = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x_0, "sample": x_0}[self.trained]
        if self.prediction_type == "epsilon":
            return Prediction((x_t - sigma * output) / alpha, output)
        return Prediction(alpha * x_t - sigma * output, sigma * x_t + alpha * output)


@pytest.mark.parametrize("trained", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_error_is_small_for_the_type_that_a_network_was_trained_with(trained, prediction_type):
    """x_0 drawn from the Gaussian itself; its spread is what even the best network does not know."""
    denoiser = Misread(trained, prediction_type)
    cond = denoiser.encode(["0", "1"])
    x_0 = denoiser.network(cond["label"]).detach().reshape(2, 3, 4, 4)
    errors = prediction_errors(denoiser, x_0, cond)
    assert min(errors, key=lambda name: errors[name]) == trained
    assert errors[trained] < 0.1
    assert all(value > 0.5 for name, value in errors.items() if name != trained), errors


def test_predictions_that_are_not_finite_are_called_so():
    """And not a batch whose samples see each other."""
    denoiser = Gaussian(Settings())
    with torch.no_grad():
        denoiser.network.mean.weight[0, 0] = torch.nan
    with pytest.raises(
        UserError, match=r"prediction for pure noise is not finite in torch\.float64 .*check the model's weights"
    ):
        require_batch_consistency(denoiser, ["0", "1"])


def test_squares_of_a_model_that_draws_none_are_refused_with_its_size(tmp_path, data):
    small.latent_pipeline(0, 16).save_pretrained(tmp_path)
    file = tmp_path / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": [12, 16]}))
    denoiser = load_model(str(tmp_path))
    with pytest.raises(UserError, match=r"have 12 x 16 latents, .* set data\.buckets=\[\[24, 32\]\], the size"):
        require_fit(denoiser, *data)
    shard, config = data
    require_fit(denoiser, shard, DataConfig(uri=config.uri, id_column="id", buckets=((24, 32),)))
