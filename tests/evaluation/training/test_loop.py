"""Fitting a model: the loss, the loop, the directory that comes out of it."""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from concept_trak import UserError
from concept_trak.config import build
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import SETS, pair_caption
from concept_trak.evaluation import judge
from concept_trak.evaluation.training.benchmark_models import (
    initial_pipeline,
    run_record,
    text_conditioned,
    train_command,
    train_model,
    train_with_judge,
    training_set,
)
from concept_trak.evaluation.training.loop import (
    MIDDLE,
    TARGETS,
    EagerStep,
    GraphStep,
    TrainingSet,
    caption_chances,
    draw_batch,
    draw_times,
    replacement_rows,
    training_loss,
    training_steps,
    unit_range,
)
from concept_trak.evaluation.training.optim import INNER, optimizers, rate_share
from concept_trak.evaluation.training.settings import TrainConfig
from concept_trak.models import load_model, small
from concept_trak.models.small import TransformerSize
from tests.configured import configure

ALPHAS = small.scheduler("epsilon").alphas_cumprod.double()
ALPHA, SIGMA = ALPHAS.sqrt(), (1 - ALPHAS).sqrt()
TINY = TrainConfig(steps=4, warm_up=2, batch=4, images=16, resolution=16, judge_steps=2, samples=1)
TRANSFORMER = replace(TINY, set="shapes2", network="transformer", dropped=0.0)


def tiny_network(seed=0):
    pipeline = small.pixel_pipeline(seed, resolution=16)
    return text_conditioned(TINY, pipeline), training_set(TINY, pipeline.tokenizer)


def fitted(seed=0, steps=10):
    network, data = tiny_network()
    *_, last = training_steps(network, data, ALPHA, SIGMA, TrainConfig(seed=seed, steps=steps, batch=8, warm_up=2))
    return network, data, last


class Knowing(nn.Module):
    """The ideal network of a training set of one image: its noise is eps = (x_t - alpha_t x_0) / sigma_t."""

    def __init__(self, x_0, prediction_type):
        super().__init__()
        self.x_0, self.prediction_type = nn.Parameter(x_0), prediction_type

    def forward(self, x_t, t, tokens):
        alpha, sigma = ALPHA[t].float().view(-1, 1, 1, 1), SIGMA[t].float().view(-1, 1, 1, 1)
        eps = (x_t - alpha * self.x_0) / sigma
        return {"epsilon": eps, "v_prediction": alpha * eps - sigma * self.x_0}[self.prediction_type]


class Silent(Knowing):
    """Always answers 0."""

    def forward(self, x_t, t, tokens):
        return 0 * x_t + 0 * self.x_0.mean()


@pytest.mark.parametrize("prediction_type", TARGETS)
@pytest.mark.parametrize("network", [Knowing, Silent])
def test_the_loss_of_a_network_known_in_closed_form(network, prediction_type):
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x_0 = unit_range(image)
    data = TrainingSet(image, torch.zeros(1, 4, 8, dtype=torch.int64), caption_chances(0.15))
    config = TrainConfig(batch=512, network="transformer", predicts=prediction_type)
    power = {"epsilon": 1.0, "v_prediction": (ALPHAS + (1 - ALPHAS) * x_0.square().mean()).mean().item()}
    expected = {Knowing: 0.0, Silent: power[prediction_type]}[network]  # the loss of 0 is the target's mean square
    measured = training_loss(network(x_0, prediction_type), draw_batch(data, ALPHA, SIGMA, config, seed=0)).item()
    assert measured == pytest.approx(expected, abs=0.02), "x_t, the noise and the target do not belong together"


def test_v_turns_back_into_the_noise_and_the_image():
    x_0, eps = torch.randn(2, 4, 3, 8, 8).unbind()
    alpha, sigma = (
        ALPHA[[1, 300, 700, 999]].float().view(4, 1, 1, 1),
        SIGMA[[1, 300, 700, 999]].float().view(4, 1, 1, 1),
    )
    x_t, v = alpha * x_0 + sigma * eps, TARGETS["v_prediction"](x_0, eps, alpha, sigma)
    torch.testing.assert_close(sigma * x_t + alpha * v, eps)
    torch.testing.assert_close(alpha * x_t - sigma * v, x_0)


@pytest.mark.parametrize("p", [0.0, 0.15, 0.5, 1.0])
def test_dropout_is_three_independent_coins(p):
    counted = torch.zeros(4)
    for coins in itertools.product([True, False], repeat=3):
        first, second, both = coins
        chance = torch.tensor([p if coin else 1 - p for coin in coins]).prod()
        counted[2 * (first or both) + (second or both)] += chance
    # counted is ordered by (first dropped, second dropped): none, second, first, both
    torch.testing.assert_close(caption_chances(p), counted)


def test_a_sample_has_its_full_caption_first_and_the_empty_one_last():
    pipeline = small.pixel_pipeline(0, resolution=16)
    data = training_set(TINY, pipeline.tokenizer)
    _, drawn = arrays(TINY.seed, 0, TINY.images, resolution=16)
    for tokens, (shape, colour) in zip(data.tokens, (d.caption_pair for d in drawn), strict=True):
        texts = pipeline.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert [text.strip() for text in texts] == [f"a {colour} {shape}", f"a {shape}", colour, ""]


def test_ten_steps_lower_the_loss():
    before, data = tiny_network()
    after, _, _ = fitted()
    batch = draw_batch(data, ALPHA, SIGMA, TrainConfig(batch=64), seed=5)
    losses = [training_loss(network, batch).item() for network in (before, after)]
    assert losses[1] < 0.9 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[1]:.3f} on the same draws"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    weights = [nn.utils.parameters_to_vector(fitted(seed, steps=4)[0].parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]), "a draw is not keyed by (seed, step)"
    assert not torch.equal(weights[0], weights[2]), "the seed does not reach the batches"


def test_the_average_with_decay_zero_is_the_network_itself():
    network, data = tiny_network()
    for progress in training_steps(network, data, ALPHA, SIGMA, TrainConfig(steps=3, batch=4, warm_up=1, decay=0.0)):
        for kept, new in zip(progress.average.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(kept, new.detach())


def test_the_rate_rises_to_its_peak_and_falls_towards_zero():
    config = TrainConfig(steps=100, warm_up=10)
    rates = [rate_share(step, config) for step in range(100)]
    assert max(rates) == rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_from_the_peak_on_the_rate_is_that_of_transformers():
    config = TrainConfig(steps=40, warm_up=7)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warm_up, config.steps)
    for step in range(config.steps):
        if step >= config.warm_up:
            assert rate_share(step, config) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("build", "absent"),
    [(small.pixel_pipeline, {"vae": None}), (small.latent_pipeline, {}), (small.patch_pipeline, {"vae": None})],
)
def test_the_directory_is_a_diffusers_pipeline(build, absent, tmp_path):
    pipeline = build(seed=1)
    pipeline.save_pretrained(tmp_path)
    loaded, adapted = DiffusionPipeline.from_pretrained(tmp_path, **absent), load_model(str(tmp_path))
    tokens = pipeline.tokenizer("a red circle", padding="max_length", return_tensors="pt").input_ids
    x_t = torch.randn(1, *adapted.shape)
    more = {}
    if adapted.part == "transformer":
        more["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    with torch.no_grad():
        ours, theirs = (
            getattr(p, adapted.part)(
                x_t, timestep=torch.tensor([500]), encoder_hidden_states=p.text_encoder(tokens)[0], **more
            ).sample
            for p in (pipeline, loaded)
        )
        eps = adapted(x_t, 500, adapted.encode(["a red circle"])).eps
    torch.testing.assert_close(theirs, ours)
    pipeline.scheduler.set_timesteps(50)
    step = pipeline.scheduler.step(ours, 500, x_t, return_dict=True)  # a second opinion on what the output means
    alpha, sigma = ALPHA[500].item(), SIGMA[500].item()
    torch.testing.assert_close((x_t - alpha * step.pred_original_sample) / sigma, eps)
    assert any("attn2" in name for name in adapted.parameters), "no cross attention to attribute to"


def test_building_a_pipeline_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    small.pixel_pipeline(0, resolution=16)
    assert torch.equal(torch.rand(1), expected)


WORDS = {"demo": small.WORDS, **{name: kinds.words for name, kinds in SETS.items()}}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_every_word_is_one_token_and_no_other_word_is_mistaken_for_one(words):
    tokenizer = small.tokenizer(words)
    assert len({tuple(tokenizer(word).input_ids) for word in words}) == len(words)
    assert all(len(tokenizer(word).input_ids) == 3 for word in words), "a word fell into pieces"
    known = {tokenizer(word).input_ids[1] for word in words}
    assert not known & set(tokenizer("redder tangle reds cubes").input_ids)


@pytest.mark.parametrize("tiny", [TINY, TRANSFORMER], ids=["unet", "transformer"])
def test_train_writes_a_pipeline_its_judge_and_how_they_were_made(tmp_path, tiny):
    config = replace(tiny, out=str(tmp_path / "model"))
    record = train_with_judge(config, report=lambda line: None)
    denoiser, written = load_model(config.out), (tmp_path / "model/training.json").read_text()
    assert (denoiser.part, denoiser.resolution) == (tiny.network, 16)
    judge.load_classifier(tmp_path / "model/classifier.safetensors", tiny.kinds)
    assert json.loads(written) == record
    assert record["held_out"] == ["a red triangle"]
    assert record["command"] == train_command(tiny)
    guidances = {"guidance 1", "guidance 2"} if tiny.dropped else {"guidance 1"}
    assert set(record["shows_both_factors"]) == guidances, "a model that never saw an empty caption has no guidance"
    assert set(record["shows_both_factors"]["guidance 1"]) == {pair_caption(*pair) for pair in tiny.kinds.all_pairs}
    assert str(tmp_path) not in written, "where it was written is not how it was made"


@pytest.mark.parametrize("tiny", [TINY, TRANSFORMER], ids=["unet", "transformer"])
def test_the_command_on_record_repeats_the_run(tmp_path, tiny):
    """Read back from the command line as the job reads it; the model is then the same to the byte."""
    program, arguments = train_command(tiny).split(" ")[:3], train_command(tiny).split(" ")[3:]
    assert program == ["python", "-m", "jobs.train"]
    again = configure(TrainConfig, "train", arguments)
    assert again == replace(tiny, out=again.out)
    for config, out in ((tiny, tmp_path / "one"), (again, tmp_path / "two")):
        train_model(config, out, lambda line: None)
    (one,), (two,) = ((tmp_path / run / tiny.network).glob("*.safetensors") for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert train_command(TrainConfig()) == "python -m jobs.train"


def weights_of(folder):
    return torch.cat([p.flatten() for p in load_model(str(folder)).parameters.values()])


def test_no_steps_write_the_initial_weights_and_say_so(tmp_path):
    config = replace(TRANSFORMER, steps=0, out=str(tmp_path / "model"))
    train_model(config, tmp_path / "model", lambda line: None)
    initial_pipeline(config).save_pretrained(tmp_path / "initial")
    assert torch.equal(weights_of(tmp_path / "model"), weights_of(tmp_path / "initial"))
    assert run_record(config)["weights"] == "initial: never trained"
    assert run_record(replace(config, steps=7))["weights"] == "after 7 steps"


def test_images_that_are_left_out_give_their_places_to_others():
    """All other places hold what they held, so that batches differ in those places alone."""
    tokenizer, ids = initial_pipeline(TRANSFORMER).tokenizer, [d.id for d in arrays(0, 0, 16, SETS["shapes2"], 16)[1]]
    whole, part = (training_set(TRANSFORMER, tokenizer, without) for without in ((), (ids[3], ids[9])))
    places = [i for i in range(16) if i not in (3, 9)]
    for before, after in ((whole.images, part.images), (whole.tokens, part.tokens)):
        assert torch.equal(before[places], after[places])
        assert torch.equal(after[[3, 9]], before[[0, 1]]), "an image that was left out is still there"


@pytest.mark.parametrize("removed", [(), (0,), (0, 1, 2, 3, 4)])
def test_whoever_takes_a_place_is_kept_and_none_much_more_often_than_others(removed):
    rows = replacement_rows(np.isin(np.arange(7), removed))
    assert not set(rows) & set(removed)
    counts = np.bincount(rows, minlength=7)[[i for i in range(7) if i not in removed]]
    assert counts.max() - counts.min() <= 1


def test_a_training_set_of_nothing_is_refused():
    with pytest.raises(ValueError, match="all 3 training images are removed"):
        replacement_rows(np.ones(3, bool))


def test_another_seed_can_train_on_the_same_images():
    pipeline = initial_pipeline(TRANSFORMER)
    same, other = (
        training_set(replace(TRANSFORMER, seed=5, images_seed=i), pipeline.tokenizer) for i in (TRANSFORMER.seed, -1)
    )
    assert torch.equal(same.images, training_set(TRANSFORMER, pipeline.tokenizer).images)
    assert not torch.equal(other.images, same.images)


def test_the_published_size_builds_and_takes_a_step(tmp_path):
    """Its own network where it is cheap to ask, a smaller one where it would take long."""
    config = configure(TrainConfig, "train", ["--config-name=train_paper", "device=cpu", "images=4", "batch=2"])
    assert (config.side, config.size, config.decay) == (64, TransformerSize(6, 8, 64), 0.0)
    tiny = replace(config, steps=2, warm_up=1, size=TransformerSize(1, 2, 32))
    train_model(tiny, tmp_path, lambda line: None)
    model = load_model(str(tmp_path))
    assert (model.resolution, model.prediction_type) == (64, "epsilon")
    assert config.steps * 128 == pytest.approx(100 * 10_000, rel=1e-3), "not a hundred epochs"


def test_captions_that_are_never_dropped_are_whole():
    data = training_set(TRANSFORMER, initial_pipeline(TRANSFORMER).tokenizer)
    assert data.chances.tolist() == [1, 0, 0, 0], "a caption loses a factor although dropped=0"


def test_wrong_captions_reach_training_and_images_do_not_change():
    tokenizer = initial_pipeline(TINY).tokenizer
    right, wrong = (training_set(replace(TINY, wrong=share), tokenizer) for share in (0.0, 0.5))
    assert torch.equal(right.images, wrong.images)
    changed = (right.tokens[:, 0] != wrong.tokens[:, 0]).any(1)
    said = [d.caption_pair != d.image_pair for d in arrays(TINY.seed, 0, TINY.images, resolution=16, wrong=0.5)[1]]
    assert changed.tolist() == said
    assert any(said), "this seed draws no wrong caption"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"set": "letters"}, "set='letters'; expected one of: shapes3, shapes2, shapes2_paper, digits"),
        ({"network": "mlp"}, "network='mlp'; expected one of: unet, transformer"),
        ({"optimizer": "sgd"}, "optimizer='sgd'; expected one of: adamw, muon"),
        ({"focus": 1.5}, "expected a share in 0"),
        ({"steps": 50}, "0 < warm_up < steps"),
        ({"decay": 1.0}, "0 <= decay < 1"),
        ({"images": 0}, "images >= 1"),
    ],
)
def test_unknown_settings_of_a_run_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)
    with pytest.raises(ValueError, match="predicts='sample': input should be 'epsilon' or 'v_prediction'"):
        build(TrainConfig, {"predicts": "sample"})


def test_muon_takes_the_matrices_inside_and_adamw_the_rest():
    network = small.patch_pipeline(0, resolution=16).transformer
    adamw = TrainConfig(steps=2, warm_up=1)
    ((_, peak),) = optimizers(network, adamw)
    assert peak == adamw.learning_rate
    (muon, _), (rest, _) = optimizers(network, TrainConfig(steps=2, warm_up=1, optimizer="muon"))
    inner = {id(p) for group in muon.param_groups for p in group["params"]}
    outer = {id(p) for group in rest.param_groups for p in group["params"]}
    names = {id(p): name for name, p in network.named_parameters()}
    assert not inner & outer
    assert inner | outer == set(names), "some parameter would never be trained"
    assert {names[i] for i in inner} >= {f"transformer_blocks.{i}.attn2.to_q.weight" for i in range(4)}
    assert not [names[i] for i in inner if "table" in names[i] or "proj_out" in names[i] or "bias" in names[i]]
    assert all(min(p.shape) >= INNER for group in muon.param_groups for p in group["params"])


def test_a_share_of_the_times_comes_from_the_middle():
    chosen = draw_times(1000, 0.7, 20_000, torch.Generator().manual_seed(0))
    low, high = (round(1000 * end) for end in MIDDLE)
    inside = ((chosen >= low) & (chosen < high)).float().mean().item()
    expected = 0.7 + 0.3 * (MIDDLE[1] - MIDDLE[0])
    assert abs(inside - expected) < 4 * (expected * (1 - expected) / 20_000) ** 0.5, "times are not drawn as said"
    assert chosen.min() < low
    assert chosen.max() >= high
    plain = torch.randint(1000, (9,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw_times(1000, 0.0, 9, torch.Generator().manual_seed(3)), plain), (
        "the shipped demo was drawn so"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_captured_step_is_the_plain_one(optimizer):
    """Five steps of a CUDA graph against five as they are written, on one device: to the order of its sums."""
    config, runs = TrainConfig(steps=5, warm_up=2, batch=8, optimizer=optimizer), []
    for step in (EagerStep, GraphStep):
        pipeline = initial_pipeline(TRANSFORMER)
        network = text_conditioned(TRANSFORMER, pipeline).to("cuda").train()
        average, data = copy.deepcopy(network).eval(), training_set(TRANSFORMER, pipeline.tokenizer)
        start = torch.cat([p.detach().flatten() for p in network.parameters()])
        update = step(network, average, config)
        losses = [
            update(draw_batch(data, ALPHA, SIGMA, config, s), rate_share(s, config), 0.5).item()
            for s in range(config.steps)
        ]
        ends = [torch.cat([p.detach().flatten() for p in module.parameters()]) - start for module in (network, average)]
        runs.append((losses, *ends))
    (losses, moved, followed), (again, moved_again, followed_again) = runs
    assert again == pytest.approx(losses, rel=1e-4), "the graph's loss is another: it reads an old batch"
    assert (moved_again - moved).norm() < 0.01 * moved.norm(), "the graph steps elsewhere: its rates or moments are old"
    assert (followed_again - followed).norm() < 0.01 * followed.norm(), "the graph's average follows otherwise"
