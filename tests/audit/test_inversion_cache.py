"""What was computed once is not computed again: kept inversions, and latents that the data bring along."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cluster.executor import Attempt
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.prepare import prepare
from concept_trak.audit.worker import open_model
from concept_trak.config import DataConfig, WorkerSettings
from concept_trak.data import latents
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import whole
from concept_trak.data.survey import indexed_here
from concept_trak.models.encode import encode_samples
from concept_trak.store.codec import decode_blocks
from concept_trak.store.records import read_part
from tests.jobs.world import World, build
from tests.tolerances import STORED32

FIRST = Attempt(1, 0)
EXACT = ("model.precision=float64", "feature.dtype=float32", "model.batch=8")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


def features(world: World, store, *more: str, shard: int = 0) -> tuple[list[str], np.ndarray, int]:
    """Ids and phi of one shard, and how many samples the network evaluated for it."""
    audit = f"audit=a{len(list(store.glob('audits/*')))}"  # of one name they would have to be one audit
    p = prepare(world.config(store, *EXACT, audit, *more, method="concept_trak", data="few"))
    worker, evaluated = FeaturizeWorker(p.work), []
    worker.denoiser.network.register_forward_hook(lambda module, inputs, out: evaluated.append(len(inputs[0])))
    (record,) = worker(FeaturizeTask(("concept_trak",), p.plan[shard]), FIRST).records
    (block,) = decode_blocks(read_part(p.store, record))
    return block.ids, block.phi().astype(np.float64), sum(evaluated)


def require_equal(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < tolerance, f"the features differ by {error.max():.1e}"


def test_kept_states_spare_the_inversion_and_change_no_feature(world, tmp_path):
    """Eight samples; two states of eight guided updates, so that the path alone takes 2 x 8 evaluations of each."""
    ids, plain, without = features(world, tmp_path / "plain")
    keep, states = ("keep_states=true",), 2
    same, first, making = features(world, tmp_path / "kept", *keep)
    assert ids == same
    require_equal(first, plain, STORED32)
    assert making == without + 8 * (states - 1), "the path is made apart, and so shares no evaluation with the states"
    other = (*keep, "projector.dim=32", "projector.seed=5", "seed=3", "model.parameters=attention")
    _, again, spared = features(world, tmp_path / "kept", *other)
    _, expected, _ = features(world, tmp_path / "others", *other[1:])
    require_equal(again, expected, STORED32)
    assert making - spared == 8 * 2 * 8, "another projector, seed or set of parameters inverted again"
    cut = ("model.batch=3", "projector.dim=16", "data.shard_rows=5")
    _, _, still = features(world, tmp_path / "kept", *keep, *cut)
    assert still == spared * 5 // 8, "another batch or shard inverted again"


def test_kept_states_that_were_altered_are_refused(world, tmp_path):
    features(world, tmp_path, "keep_states=true")
    path = sorted(tmp_path.glob("states/*/*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"states/.* was truncated or altered; remove it: it is made again"):
        features(world, tmp_path, "keep_states=true", "projector.dim=32")


def encoded_once(world: World, folder, rows: Sequence[int] = (8, 8)) -> tuple[str, list[str]]:
    """The data set `few` as its latents and embeddings, in files of so many rows."""
    config = world.config(folder / "unused", *EXACT, data="few")
    denoiser, data = open_model(config.model, WorkerSettings()), config.data
    (source,) = indexed_here(data).sources
    read = [s for s in samples(whole(source), data, denoiser.resolution) if isinstance(s, Sample)]
    (folder / "encoded").mkdir(parents=True)
    for i, count in enumerate(rows):
        some = read[sum(rows[:i]) : sum(rows[:i]) + count]
        x_0, cond = encode_samples(denoiser, some)
        columns = {"id": [s.id for s in some], "caption": [s.caption for s in some]}
        columns |= {n: [s.labels[n] for s in some] for n in data.label_columns}
        latents.write_latents(folder / f"encoded/{i}.safetensors", x_0, cond, columns)
    return str(folder / "encoded"), [s.id for s in read]


def test_latents_and_embeddings_give_the_features_of_their_images(world, tmp_path):
    uri, ids = encoded_once(world, tmp_path)
    expected = features(world, tmp_path / "images")
    found = features(world, tmp_path / "latents", f"data.uri={uri}")
    assert found[0] == expected[0] == ids[:8]
    require_equal(found[1], expected[1], STORED32)


def test_an_audit_of_latents_reaches_its_page(world, tmp_path):
    uri, ids = encoded_once(world, tmp_path)
    found = world.audit(tmp_path / "store", f"data.uri={uri}", "data.shard_rows=3")
    assert found.code == 0
    assert {row["sample_id"] for row in found.top()} == set(ids)


@pytest.mark.parametrize("rows", [(1, 15), (16,)])
def test_every_row_of_latents_comes_once_whatever_the_shards(tmp_path, rows):
    for i, count in enumerate(rows):
        x = torch.arange(sum(rows[:i]), sum(rows[:i]) + count).float()
        latents.write_latents(tmp_path / f"{i}.safetensors", x[:, None, None, None].expand(-1, 2, 3, 3).half(),
                      {"text": x[:, None].expand(-1, 5), "mask": x.long()[:, None]}, {})  # fmt: skip
    for shard_rows in (1, 5, 64):
        data = DataConfig(uri=str(tmp_path), shard_rows=shard_rows)
        seen = [s for source in indexed_here(data).sources for s in samples(whole(source), data, 8)]
        for n, one in enumerate(seen):
            assert isinstance(one, Sample)
            assert one.precomputed is not None
            assert one.precomputed.latent.dtype == torch.float16
            assert one.precomputed.latent.shape == (2, 3, 3)
            assert {int(t.flatten()[0]) for t in (one.precomputed.latent, *one.precomputed.condition.values())} == {n}
        assert len(seen) == 16


def test_latents_that_cannot_be_used_are_refused_or_rejects(world, tmp_path):
    x, text = torch.zeros(2, 4, 4, 4), torch.zeros(2, 5)
    for name, condition, columns, says in (
        ("none", {}, {}, r"none\.safetensors: no condition, or a wrong shape; expected latents"),
        ("short", {"text": text[:1]}, {}, r"short\.safetensors: condition\.text has 1 rows, not 2"),
        ("ids", {"text": text}, {"id": [1]}, r"ids\.safetensors: id has 1 rows, not 2"),
    ):
        latents.write_latents(tmp_path / f"{name}.safetensors", x, condition, columns)
        with pytest.raises(ValueError, match=says):
            list(indexed_here(DataConfig(uri=f"{tmp_path}/{name}.safetensors")).sources)
    (tmp_path / "text.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match=r"text\.safetensors is no safetensors file with `latents`"):
        list(indexed_here(DataConfig(uri=f"{tmp_path}/text.safetensors")).sources)
    x[1] = torch.nan
    (tmp_path / "other").mkdir()
    columns = {"id": ["a", "b"], "shape": ["x", "x"], "colour": ["y", "y"]}
    latents.write_latents(tmp_path / "other/a.safetensors", x, {"text": text}, columns)
    data = DataConfig(uri=f"{tmp_path}/other", id_column="id")
    _, bad = (one for source in indexed_here(data).sources for one in samples(whole(source), data, 8))
    assert not isinstance(bad, Sample)
    assert "infinite or undefined" in bad.message
    with pytest.raises(
        ValueError, match=r"do not fit the model: they have latents \[4\], text \[5\] .*the model reads"
    ):
        prepare(world.config(tmp_path / "store", f"data.uri={data.uri}", model="pixels"))
