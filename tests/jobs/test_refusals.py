"""A mistake costs one message and exit code 2, before a worker starts or a result is written."""

import os
import shutil

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load_file, save_file

from concept_trak import UserError
from concept_trak.audit import checks
from concept_trak.audit.prepare import prepare
from tests.jobs.world import altered, files_under
from tests.store import faults


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["damping=-1"], "damping=-1.0; expected auto or a positive number"),
        (["dampnig=1"], "unknown key dampnig (did you mean damping?)"),
        (["model.batch=few"], "model.batch='few': input should be a valid integer"),
        (["methods.caption_trak.train.times=[]"], "expected at least one time in 1 ... 999"),
        (["concepts=[]"], "concepts is not set; expected something like concepts=[{name: red"),
        (["model.path=''"], "model.path is not set; expected something like"),
        (["model.path=/nowhere", "preflight=true"], "model.path='/nowhere' does not exist"),
        (["model.path=/nowhere"], "model.path='/nowhere' does not exist; expected a diffusers pipeline directory with"),
        (["data.uri=/nowhere"], "data.uri='/nowhere' does not exist; expected a file of training samples, or a folder"),
        (["data.uri=nowhere://x"], "Protocol not known: nowhere"),
        (["data.caption_column=captoin"], "data.caption_column='captoin' is not a column of"),
        (["data.caption_column=captoin"], "did you mean 'caption'?"),
        (["data.image_column=caption"], "data.image_column='caption' is string; expected struct<bytes: binary"),
        (["projector.dim=100000000"], "is wider than the"),
        (["projector.dim=100000000"], "choose projector.dim <="),
        (["model.parameters=no_such_layer"], "no_such_layer"),
        (["audit=../up"], "audit='../up': expected letters, digits"),
        (["damping=inf"], "damping=inf; expected auto or a positive number, 1e-12 ... 1e12"),
        (["damping=nan"], "damping is not a number (nan); expected a number"),
        (["damping=1e-300"], "damping=1e-300; expected auto or a positive number, 1e-12 ... 1e12"),
        (["damping=1e300"], "damping=1e+300; expected auto or a positive number"),
        (["top=1000000000000"], "top=1000000000000; expected at least 1, at most 1000000"),
        (["shown=-1"], "shown=-1; expected at least 0"),
        (["interval=-1"], "interval=-1.0; expected at least 0"),
        (["budget.rejects=nan"], "budget.rejects is not a number (nan)"),
        (["cluster.cpus=inf"], "cluster.cpus=inf; expected at least 0.01, and finite"),
        (["methods.caption_trak.query.guidance=nan"], "query.guidance is not a number (nan)"),
        (["concepts=[{name: a, prompt: 'a \udcff square', without_prompt: red}]"], "concepts is not Unicode text"),
        ([f"concepts=[{{name: a, prompt: '{'red ' * 25000}', without_prompt: red}}]"], "...' has 25002 tokens"),
        (["audit=index.html"], "audit='index.html': expected letters"),
        (["audit=latest"], "audit='latest': the name is reserved"),
        (["audit=Con.1"], "audit='Con.1': the name is reserved"),
        (["audit=week-1."], "audit='week-1.': the name is reserved"),
        ([f"audit={'n' * 101}"], "the name has 101 bytes; expected at most 100"),
        ([f"audit='{'ä' * 60}'"], "the name has 120 bytes"),
        ([f"concepts=[{{name: {'n' * 101}, prompt: a red square, without_prompt: red}}]"], "name must be at most 100"),
        (["concepts=[{name: a, prompt: x, without_prompt: y}, {name: A, prompt: x, without_prompt: y}]"], "a is named"),
        (["cluster=ray", "store=results"], "store='results' is another folder on each node; give an absolute path"),
        (["cluster=ray"], "if every node sees the same one, set cluster.shared_store=true"),
        (["cluster=local", "store=memory://here"], "is the memory of one process; use it with cluster=serial"),
        (["store=nowhere://x"], "Expected file, s3, memory or another scheme"),
        (["store=/proc/here"], "store /proc/here cannot be used"),
        (["concepts=[{name: a, prompt: A red square, without_prompt: a  red square}]"], "the model encodes 'A red squ"),
        (["concepts=[{name: a, prompt: b, scope: local, image: /nowhere.png}]"], "image '/nowhere.png' cannot be read"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "says",
)  # fmt: skip
def test_settings_that_cannot_be(refused, more, says):
    assert says in refused(*more)


def test_a_store_with_something_in_the_way_of_its_folders(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("pipe", "file", "circle"):
        assert "a file, a pipe or a link is in its way" in refused(store=tmp_path / name)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/audits").write_text("mine")
    assert "store/audits is a file, where the store needs a folder" in refused(store=tmp_path / "store")


def test_a_store_among_the_data(refused, world, tmp_path):
    data = shutil.copytree(world.root / "few", tmp_path / "data")
    (tmp_path / "link").symlink_to(data)
    for store in (data, data / "deep/store", tmp_path / "link/store"):
        assert "where results would be read as data" in refused(f"data.uri={tmp_path}/link", store=store)
    assert [path.name for path in data.rglob("*") if path.is_dir()] == []


def test_a_store_among_the_models_files_and_data_among_results(refused, world, tmp_path):
    shutil.copytree(world.root / "latents", tmp_path / "model")
    shutil.copytree(world.root / "few", tmp_path / "store/features/train")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    said = refused(f"model.path={tmp_path}/link/", store=f"file://{tmp_path}/model/results/")
    assert "is in the folder of model.path=" in said
    said = refused(f"data.uri=file://{tmp_path}/store/features/train/", "preflight=true")
    assert f"/store/features/train is in features/ of store={tmp_path}/store, where files that no audit" in said


def test_an_audit_that_differs_from_another_in_case_alone(refused, world, tmp_path):
    store = tmp_path / "store"
    for name in ("Week-1", "weiß"):
        (store / "audits" / name).mkdir(parents=True)
        (store / "audits" / name / "audit.yaml").write_text("{}")
    assert "audit='week-1': there is an audit 'Week-1'" in refused("audit=week-1")
    assert "audit='WEISS': there is an audit 'weiß'" in refused("audit=WEISS")
    (store / "audits/somebody's notes").mkdir()
    (store / "audits/somebody's notes/a.txt").write_text("no audit")
    assert "begun with other settings" in refused("audit=Week-1"), "one that is there is resumed, and notes do no harm"
    shutil.move(store / "audits/Week-1", store / "audits/Week 1 (copy)")
    assert "audits/Week 1 (copy) holds an audit: " in refused("audit=other")


@pytest.mark.parametrize("store", ["", "  ", "~nobody-here/results", "C:\\\\results"])
def test_a_store_that_names_no_folder(refused, tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    said = refused(f"store='{store}'")
    assert "the path is empty" in said or "in no home folder that is known" in said or "is a path of Windows;" in said
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, world):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.copytree(world.root / "latents", tmp_path / "home/model")
    shutil.copytree(world.root / "few", tmp_path / "home/few")
    monkeypatch.chdir(tmp_path)
    config, _ = world.configs("~/store", "model.path='~/model'", "data.uri='~/few'", "store='~/store'")
    p = prepare(config)
    assert (p.config.store, p.config.model.path, p.config.data.uri) == tuple(
        str(tmp_path / "home" / name) for name in ("store", "model", "few")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_store_that_lets_a_second_create_overwrite_the_first(refused):
    faults.register()
    try:
        said = refused(store="forgetful://place")
    finally:
        MemoryFileSystem.store.clear()
    assert "a second create of the same name overwrote the first" in said
    assert "Use a store with conditional create" in said


def test_data_without_files_rows_or_unique_ids(refused, world, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert "files; expected a file of training samples" in refused(f"data.uri={tmp_path}/nothing")
    empty = altered(world, tmp_path / "empty", lambda rows: rows.clear())
    assert "has 1 parquet files but no rows" in refused(f"data.uri={empty}")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/train.parquet").write_bytes(next((world.root / "few").iterdir()).read_bytes()[:500])
    assert "is not a readable Parquet file" in refused(f"data.uri={tmp_path}/torn")


def test_ids_that_are_not_unique_are_named_with_their_sources(world, tmp_path):
    """Workers compare them: over several files, and once for a listing."""
    folder = altered(world, tmp_path / "twice", lambda rows: rows[3].update(id="shapes-000001"))
    altered(world, tmp_path / "other", lambda rows: rows.__setitem__(slice(None), rows[5:7]))
    shutil.move(tmp_path / "other/train.parquet", folder / "train-2.parquet")
    for _ in range(2):
        with pytest.raises(UserError, match=r"data\.id_column='id' is not unique") as refusal:
            world.audit(tmp_path / "store", f"data.uri={folder}")
        assert "shapes-000001, shapes-000005, shapes-000006 occur more than once" in str(refusal.value)
        assert "train.parquet" in str(refusal.value)
        assert "train-2.parquet" in str(refusal.value)
        assert "leave data.id_column empty to have them made" in str(refusal.value)
    assert not (tmp_path / "store/audits").exists(), "nothing stays of an audit that never began"


def test_models_that_cannot_be_read(refused, world, tmp_path):
    model = shutil.copytree(world.root / "latents", tmp_path / "model")
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    said = refused(f"model.path={model}")
    assert str(model / "unet") in said
    assert "save the pipeline again" in said
    weights.unlink()
    assert "holds no .safetensors weights" in refused(f"model.path={model}")
    shutil.rmtree(model / "scheduler")
    assert "lacks scheduler" in refused(f"model.path={model}")
    (model / "model_index.json").write_text("{")
    assert "model_index.json is not a JSON mapping" in refused(f"model.path={model}")


@pytest.mark.parametrize("key", ["data.uri", "store", "model.path"])
def test_an_address_with_credentials_is_refused_before_anything_is_written(refused, tmp_path, capsys, key):
    for address in ("s3://somebody:hunter2@bucket/x", "memory://somebody:hunter2@place/x"):
        said = refused(f"{key}={address}")
        assert key.rpartition(".")[2] in said
        assert "carries credentials" in said
        assert "environment" in said
        assert "hunter2" not in said
    assert not files_under(tmp_path / "store")


def test_an_audit_resumed_under_other_settings_names_the_keys(refused, world, tmp_path):
    store = tmp_path / "store"
    assert world.audit(store, data="few").code == 0
    before = files_under(store)
    said = refused("damping=5", "top=7", data="few")
    assert "audit first was begun with other settings: damping: 5.0 here, 100.0 there; top: 7 here, 100 there" in said
    assert "choose another audit=" in said
    concept = "{name: triangle, prompt: a red triangle, without_prompt: red, samples: 3, truth: {shape: triangle}}"
    assert "concepts.0.samples: 3 here, 2 there" in refused(f"concepts=[{concept}]", data="few")
    assert files_under(store) == before


def test_an_audit_resumed_with_other_weights_is_refused(refused, world, tmp_path):
    model = shutil.copytree(world.root / "latents", tmp_path / "model")
    assert world.audit(tmp_path / "store", f"model.path={model}", data="few").code == 0
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + np.float32(1)
    save_file(tensors, weights, {"format": "pt"})
    assert "begun with other settings: fingerprints.caption_trak" in refused(f"model.path={model}", data="few")


def test_a_model_whose_samples_see_each_other(refused, monkeypatch):
    """That it is looked for before anything starts; what counts as seeing each other: tests/audit/test_checks.py."""
    monkeypatch.setitem(checks.ROUNDING, torch.float32, -1.0)  # so that any model does
    assert "and the sample alone" in refused()
    assert "model.batch=1" in refused()
