"""A fingerprint covers what changes a feature's numbers, and nothing else."""

from dataclasses import asdict, replace

import pytest
import torch

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import negatives
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.projector import Projector
from concept_trak.audit import plan
from concept_trak.audit.plan import feature_settings
from concept_trak.config import AuditConfig, DataConfig, FeatureConfig, ModelConfig
from concept_trak.models.gaussian import Gaussian, Settings
from concept_trak.store.identity import fingerprint
from tests.toys import Toy

CONCEPT = Concept("red", prompt="a red square", without_prompt="a square")
CONFIG = AuditConfig(
    store="results", data=DataConfig(uri="s3://bucket/train"), projector=Projector("sketch", 32), concepts=(CONCEPT,)
)


def named(config=CONFIG, method="concept_trak", denoiser=None, identity=None) -> str:
    denoiser = denoiser or Toy()
    row = METHODS[method] if isinstance(method, str) else method
    return fingerprint(feature_settings(config, row, denoiser, identity or denoiser.identity()))


def at(config=CONFIG, **changes):
    """The configuration with dotted keys changed."""
    for key, value in changes.items():
        group, _, name = key.partition("__")
        config = replace(config, **{group: replace(getattr(config, group), **{name: value}) if name else value})
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"projector__dim": 16},
        {"projector__seed": 1},
        {"projector__kind": "mask"},
        {"projector__kind": "identity"},
        {"model__precision": "float64"},
        {"feature__dtype": "float32"},
        {"feature__encoding": "list"},
        {"data__id_column": "id"},
        {"data__caption_column": "text"},
        {"data__image_column": "picture"},
        {"data__conditioning_image_column": "edges"},
        {"data__uri": "s3://bucket"},
        {"data__captions": "join"},
        {"data__crop": "random"},
        {"data__enlarge": False},
        {"data__buckets": ((16, 32),)},
    ],
    ids=str,
)
def test_what_changes_a_features_numbers_changes_the_fingerprint(changes):
    assert named(at(**changes)) != named()


def test_where_made_ids_begin_matters_only_while_ids_are_made():
    """The same file below another folder has other ids, and noise is keyed by ids."""
    with_ids = at(data__id_column="id")
    assert named(at(with_ids, data__uri="s3://elsewhere")) == named(with_ids)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ModelConfig(batch=1, device="cpu", path="elsewhere", offload="always")},
        {"damping": 3.0},
        {"concepts": ()},
        {"concepts": (CONCEPT, replace(CONCEPT, name="other", seed=9))},
        {"store": "s3://elsewhere/results"},
        {"audit": "another"},
        {"data__shard_rows": 5},
        {"data__label_columns": ("shape",)},
        {"top": 5},
        {"scores": "all"},
        {"shown": 3},
        {"keep_states": True},
        {"aggregates": False},
        {"since": "latest"},
        {"report": "folder"},
        {"methods": METHODS},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_what_does_not_change_a_features_numbers_leaves_the_fingerprint(changes):
    assert named(at(**changes)) == named(), "features that exist would be computed again"


def test_every_setting_was_put_to_one_of_the_two():
    """A new field of the configuration must be placed above."""
    assert set(asdict(CONFIG)) == {
        "store", "audit", "model", "data", "methods", "projector", "concepts", "damping", "seed", "top", "scores",
        "shown", "feature", "keep_states", "aggregates", "since",
        "report",
    }  # fmt: skip
    assert set(asdict(ModelConfig())) == {
        "path",
        "weights",
        "lora",
        "embeddings",
        "parameters",
        "negative",
        "combinations",
        "resolution",
        "offload",
        "device",
        "precision",
        "batch",
    }
    assert set(asdict(FeatureConfig())) == {"dtype", "encoding"}


def test_the_model_its_parameters_and_its_negative_change_the_fingerprint(monkeypatch):
    other_label = Gaussian(Settings(classes=3))
    reordered, fewer = Gaussian(Settings(classes=3)), Gaussian(Settings(classes=3))
    reordered.combinations, fewer.combinations = other_label.combinations[::-1], other_label.combinations[:2]
    empty, empty_too = Gaussian(Settings(classes=3)), Gaussian(Settings(classes=3))
    empty.negative = empty_too.negative = "empty"
    empty_too.combinations = ()
    config = at(projector__kind="identity")
    assert len({named(config, denoiser=d) for d in (other_label, reordered, fewer, empty)}) == 4
    assert named(config, denoiser=empty) == named(config, denoiser=empty_too), "unused combinations are no difference"
    assert len({named(denoiser=Toy(p)) for p in ("all", "mix", "wide", "first")}) == 4
    assert named(identity={"toy": "1"}) != named()
    larger = Toy()
    larger.shape = (2, 12, 12)
    assert named(denoiser=larger) != named(), "images of another resolution are other images"
    before = named()
    monkeypatch.setattr(plan, "NUMERICS", plan.NUMERICS + 1)
    assert named() != before


def test_the_order_of_combinations_changes_numbers_as_the_fingerprint_says():
    ids, texts = [f"s{i}" for i in range(20)], ["0"] * 20
    one, other = Gaussian(Settings(classes=4)), Gaussian(Settings(classes=4))
    other.combinations = other.combinations[::-1]
    assert not torch.equal(negatives(one, ids, texts, 0)["label"], negatives(other, ids, texts, 0)["label"])


def test_the_train_side_of_a_method_changes_the_fingerprint_and_the_query_side_does_not():
    rows = {name: named(method=name) for name in METHODS}
    assert rows["trak"] == rows["concept_a"], "they differ in the query side alone, and share all features"
    assert len(set(rows.values())) == len(METHODS) - 1
    row = METHODS["concept_trak"]
    assert named(method=replace(row, query=replace(row.query, strength=3.0, eta=0.5))) == rows["concept_trak"]
    for changed in ({"guidance": 2.0}, {"points": 101}, {"every": 3}, {"direction": "prediction"}):
        assert named(method=replace(row, train=replace(row.train, **changed))) != rows["concept_trak"], changed
    assert named(method=replace(row, unit=False)) != rows["concept_trak"]
    assert named(method=replace(row, over="layer")) != rows["concept_trak"]
    assert named(method=replace(METHODS["das"], weight="one")) != rows["das"]
