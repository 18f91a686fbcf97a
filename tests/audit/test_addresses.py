"""Which addresses of a store, data and a model are refused, however they are written."""

import pytest

from concept_trak import UserError
from concept_trak.audit.resolve import require_apart
from concept_trak.config import ModelConfig


@pytest.mark.parametrize(
    ("store", "data", "model"),
    [
        ("s3://b", "s3://b/train", {"path": "s3://b/model"}),
        ("s3://b/results", "s3://b/results2", {"path": "s3://b/results/base", "lora": "s3://b/results/lora/a"}),
        ("/a/data.parquet.d", "/a/data.parquet", {"path": "org/results"}),
        ("memory://a", "memory://ab", {"weights": "/a/features"}),
        ("{here}/store", "{here}/store/train", {"path": "{here}/store/model", "embeddings": ("{here}/x",)}),
    ],
)
def test_addresses_that_are_apart(tmp_path, store, data, model):
    here = str(tmp_path)
    weights = {k: v.format(here=here) if isinstance(v, str) else (here + "/x",) for k, v in model.items()}
    require_apart(store.format(here=here), ModelConfig(**weights), data.format(here=here))


@pytest.mark.parametrize(
    ("store", "data", "model", "key"),
    [
        ("s3://b/train/", "s3a://b/train", {}, "data.uri"),
        ("s3://b", "s3://b/audits/week-1", {}, "data.uri"),
        ("{here}/data/results", "file://{here}/link/", {}, "data.uri"),
        ("file://{here}/link/sub/../features", "{here}/data", {}, "data.uri"),
        ("{here}/link", "{here}/data/states/kept", {}, "data.uri"),
        ("s3://b/sd", "", {"path": "s3://b"}, "model.path"),
        ("{here}/data", "", {"lora": "{here}/link/components/demo"}, "model.lora"),
        ("{here}/data", "", {"embeddings": ("/x", "{here}/data/sources/a.safetensors")}, "model.embeddings"),
        ("{here}/data/unet", "", {"weights": "{here}/link"}, "model.weights"),
    ],
)
def test_addresses_inside_one_another_are_refused(tmp_path, store, data, model, key):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    text = str(tmp_path)
    weights = {k: tuple(a.format(here=text) for a in v) if isinstance(v, tuple) else v.format(here=text)
               for k, v in model.items()}  # fmt: skip
    with pytest.raises(UserError, match=rf"(?s){key}=.*(put the store elsewhere|move one of the two)"):
        require_apart(store.format(here=text), ModelConfig(**weights), data.format(here=text))
