"""Latents and embeddings in columns of Parquet are those that the same numbers are in safetensors."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from concept_trak.config import DataConfig
from concept_trak.data import latents
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from tests.data.files import plan

X = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
CONDITION = {"text": X[:, 0].half(), "label": torch.arange(5)}
SAID = {"id": [f"s{n}" for n in range(5)], "caption": [f"caption {n}" for n in range(5)]}
COLUMNS = {"id_column": "id", "shard_rows": 2}


def parquet(path, x=X.tolist(), **changed) -> DataConfig:
    """The same as columns, in row groups of two."""
    columns = {
        "latents": x,
        "condition.text": CONDITION["text"].tolist(),
        "condition.label": CONDITION["label"].tolist(),
    }
    table = pa.table({name: value for name, value in (SAID | columns | changed).items() if value is not None})
    pq.write_table(table, path, row_group_size=2)
    return DataConfig(uri=str(path), image_column="latents", **COLUMNS)


def read(data: DataConfig) -> list:
    survey(data)
    return [one for shard in plan(data) for one in samples(shard, data, 8)]


def test_columns_of_parquet_are_read_as_safetensors_are(tmp_path):
    latents.write_latents(tmp_path / "a.safetensors", X, CONDITION, SAID)
    expected = read(DataConfig(uri=str(tmp_path / "a.safetensors"), **COLUMNS))
    found = read(parquet(tmp_path / "a.parquet"))
    assert [(one.id, one.caption) for one in found] == [(one.id, one.caption) for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, Sample)
        assert torch.equal(ours.precomputed.latent, theirs.precomputed.latent)
        assert set(ours.precomputed.condition) == {"text", "label"}
        for name, value in theirs.precomputed.condition.items():
            same = ours.precomputed.condition[name]
            assert torch.equal(same, value.to(same.dtype)), name
            assert same.is_floating_point() == value.is_floating_point(), name


def test_a_row_without_a_latent_is_a_reject(tmp_path):
    ragged = [[[1.0], [1.0, 2.0]]]
    x = [None, ragged, [[[float("nan")]]], *X[3:].tolist()]
    reasons = [getattr(one, "reason", "") for one in read(parquet(tmp_path / "a.parquet", x))]
    assert reasons == ["decode"] * 3 + [""] * 2


def test_columns_that_are_no_latents_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"or latents as list<list<list<float>>>"):
        read(parquet(tmp_path / "flat.parquet", X.flatten(1).tolist()))
    with pytest.raises(ValueError, match=r"holds latents, and .* has no condition\.<name> beside them"):
        read(parquet(tmp_path / "bare.parquet", **{"condition.text": None, "condition.label": None}))
