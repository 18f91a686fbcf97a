"""Models on object storage, on the Hub and in one file, each against a stand-in on this machine: no network."""

import shutil
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import fsspec
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file, save, save_file

from concept_trak import UserError
from concept_trak.models import load_model
from concept_trak.models.location import cache_root, cached_folder, local_path, needed_files
from tests.models.original import original_checkpoint, tiny_pipeline

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CONCEPT_TRAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def upload(folder: Path, fs, root: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{root}/{file.relative_to(folder)}", file.read_bytes())


@pytest.fixture
def remote(saved, request):
    """The latent pipeline on fsspec's memory, with files that no pipeline loads."""
    fs, root = fsspec.filesystem("memory"), f"/{request.node.name[:20]}"
    upload(saved("latents"), fs, root)
    for stray in ("v1-5-pruned.safetensors", "README.md", "unet/diffusion_pytorch_model.bin", "safety_checker/x.json"):
        fs.pipe_file(f"{root}/{stray}", b"not to be fetched")
    yield fs, root
    fs.rm(root, recursive=True)


def test_a_model_on_object_storage_is_the_model_and_fetched_once(saved, remote, cache, monkeypatch):
    fs, root = remote
    assert load_model(f"memory:/{root}").identity() == load_model(str(saved("latents"))).identity()
    (copy,) = [p for p in cache.iterdir() if p.is_dir()]
    names = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert names == set(needed_files([f.removeprefix(f"{root}/") for f in fs.find(root)]))
    assert not names & {"README.md", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin"}
    monkeypatch.setattr(type(fs), "get_file", lambda *args, **ways: pytest.fail("fetched again"))
    assert load_model(f"memory:/{root}")


def test_a_model_that_changed_is_fetched_again(saved, remote):
    _, root = remote
    before = load_model(f"memory:/{root}").identity()
    state = load_file(saved("latents") / "unet/diffusion_pytorch_model.safetensors")
    state["conv_in.bias"] += 1
    name = f"{root}/unet/diffusion_pytorch_model.safetensors"
    with fsspec.open(f"memory:/{name}", "wb") as file:
        file.write(save(state, {"format": "pt"}))
    assert load_model(f"memory:/{root}").identity() != before


def test_workers_of_a_node_fetch_once_and_one_that_dies_leaves_nothing(cache):
    fills, gate = [], threading.Barrier(4)

    def fill(folder: Path) -> None:
        fills.append(folder)
        (folder / "model").write_text("x")

    def worker(_: int) -> Path:
        gate.wait()
        return cached_folder("one", fill)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(worker, range(4)))) == 1 == len(fills)
    with pytest.raises(OSError, match="no network"):
        cached_folder("two", lambda folder: (_ for _ in ()).throw(OSError("no network")))
    assert [p.name for p in cache.iterdir() if p.is_dir()] == ["one"], "half a model would be taken for a whole one"


def test_an_adapter_may_be_remote_too(saved, remote, tmp_path):
    fs, root = remote
    base = load_model(str(saved("latents")))
    width = base.text_encoders["text_encoder"].model.config.hidden_size
    save_file({"emb_params": torch.randn(1, width)}, tmp_path / "style.safetensors")
    fs.pipe_file(f"{root}/e/style.safetensors", (tmp_path / "style.safetensors").read_bytes())
    ours = load_model(str(saved("latents")), embeddings=[f"memory:/{root}/e/style.safetensors"])
    assert not torch.equal(ours.encode(["a style"])["text"], base.encode(["a style"])["text"])


def test_s3_is_read_through_s3fs(saved, monkeypatch):
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a",
                            "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        boto3.Session().client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="models")
        fsspec.config.conf.clear()
        upload(saved("latents"), fsspec.filesystem("s3", skip_instance_cache=True), "models/sd")
        assert load_model("s3://models/sd").identity() == load_model(str(saved("latents"))).identity()
        with pytest.raises(
            UserError, match=r"model\.path='s3://models/nothing' does not exist, or holds no safetensors"
        ):
            load_model("s3://models/nothing")
    finally:
        moto.stop()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory://nowhere", r"model\.path='memory://nowhere' does not exist, or holds no safetensors"),
        ("nosuch://x/y", r"model\.path='nosuch://x/y' cannot be read \(ValueError: Protocol not known: nosuch"),
        ("org/model", r"='org/model' is no local path, and as a Hub id: org/model is not in this machine's Hub "
                      r"cache and cannot be fetched \(\w+\); unset HF_HUB_OFFLINE, or .* `hf download org/model` and"),
        ("/no/such/model", r"'/no/such/model' does not exist; expected a diffusers pipeline directory"),
        ("./no/such", r"no/such' does not exist; expected a diffusers pipeline directory"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_message(address, expected):
    with pytest.raises(UserError, match=expected):
        load_model(address)


def test_a_home_folder_and_a_file_address_are_paths(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved("latents").parent))
    for address in (f"~/{saved('latents').name}", f"file://{saved('latents')}"):
        assert local_path(address, "model.path") == saved("latents")


def in_hub_cache(folder: Path, repository: str, revision: str = "main") -> None:
    """The Hub's own layout of a downloaded repository."""
    root, commit = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(commit)


@pytest.mark.parametrize("address", ["org/model", "org/model@v2"])
def test_a_hub_id_that_is_in_the_cache_is_read_without_a_network(saved, address):
    in_hub_cache(saved("latents"), "org/model", "v2" if "@" in address else "main")
    assert load_model(address).identity() == load_model(str(saved("latents"))).identity()


def test_a_hub_id_is_fetched_by_the_files_that_the_model_loads(saved, monkeypatch):
    """The Hub's two calls, replaced: the names of a repository, and a download of some."""
    names = [p.relative_to(saved("latents")).as_posix() for p in saved("latents").rglob("*") if p.is_file()]
    fetched: list[list[str]] = []

    def download(repository: str, allow_patterns: list[str], revision: str | None) -> str:
        fetched.append(allow_patterns)
        return str(saved("latents"))

    strays = ["v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/flax_model.msgpack"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository, revision: names + strays)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("org/model")
    scheduler = "scheduler/scheduler_config.json"
    assert set(load_model("org/model").identity()) - {"schedule"} | {"model_index.json", scheduler} == set(fetched[0])


def test_a_hub_that_cannot_be_reached_is_one_message_and_its_cache_still_serves(saved, monkeypatch):
    """The error of a connection, which is no OSError."""

    class ConnectError(Exception):
        pass

    def unreachable(self, repository: str, revision: str | None) -> list[str]:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(
        UserError, match=r"cannot be fetched \(ConnectError\); check the name, the network and HF_TOKEN"
    ):
        load_model("org/model")
    in_hub_cache(saved("latents"), "org/model")
    assert load_model("org/model").identity() == load_model(str(saved("latents"))).identity()


def settings_of(pipe, folder: Path) -> Path:
    """The configuration of a pipeline without its weights, as it lies in the Hub's cache."""
    pipe.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def test_an_original_checkpoint_is_the_pipeline_that_it_was_made_from(tmp_path, cache):
    pipe = tiny_pipeline()
    checkpoint = original_checkpoint(pipe, tmp_path / "v1-5-pruned.safetensors")
    in_hub_cache(settings_of(pipe, tmp_path / "settings"), SD15)
    pipe.save_pretrained(tmp_path / "whole")
    ours, whole = load_model(str(checkpoint)), load_model(str(tmp_path / "whole"))
    for name, p in whole.parameters.items():
        assert torch.equal(ours.parameters[name], p), name
    assert torch.equal(ours.encode(["red"])["text"], whole.encode(["red"])["text"])
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(ours.to_latent(image), whole.to_latent(image))
    (converted,) = [p for p in cache.iterdir() if p.is_dir()]
    assert ours.path == converted
    before = converted.stat().st_mtime_ns
    assert load_model(str(checkpoint)).identity() == ours.identity()
    assert converted.stat().st_mtime_ns == before, "converted a second time"


def test_an_original_checkpoint_without_its_configuration_names_the_command(tmp_path):
    checkpoint = original_checkpoint(tiny_pipeline(), tmp_path / "model.safetensors")
    expected = (
        rf"configuration is that of {SD15}: .* run `hf download .*from_single_file\('.*model.safetensors', config="
    )
    with pytest.raises(UserError, match=expected):
        load_model(str(checkpoint))


def test_the_command_that_is_named_converts_without_a_network(tmp_path):
    """With any directory that has the configuration, as a user would have one."""
    pipe = tiny_pipeline()
    checkpoint = original_checkpoint(pipe, tmp_path / "model.safetensors")
    pipe.save_pretrained(tmp_path / "base")
    made = type(pipe).from_single_file(str(checkpoint), config=str(tmp_path / "base"), safety_checker=None)
    made.save_pretrained(tmp_path / "converted")
    ours, whole = load_model(str(tmp_path / "converted")), load_model(str(tmp_path / "base"))
    assert all(torch.equal(ours.parameters[name], p) for name, p in whole.parameters.items())


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(tmp_path, cache):
    pipe = tiny_pipeline()
    state = load_file(original_checkpoint(pipe, tmp_path / "model.safetensors"))
    state.pop("model.diffusion_model.out.2.bias")
    save_file(state, tmp_path / "model.safetensors")
    in_hub_cache(settings_of(pipe, tmp_path / "settings"), SD15)
    with pytest.raises(UserError, match=r"model\.safetensors' cannot be converted|lacks 1 weights"):
        load_model(str(tmp_path / "model.safetensors"))
    assert not [p for p in cache.glob("*") if p.is_dir()]


def test_one_file_of_another_kind_is_refused_with_the_key_it_belongs_to(saved, tmp_path):
    network = saved("latents") / "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match=r"is one file and no original checkpoint .* are given as model\.weights"):
        load_model(str(network))
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"model\.ckpt' is no \.safetensors file; .* pickled weights can run code"):
        load_model(str(tmp_path / "model.ckpt"))
    checkpoint = original_checkpoint(tiny_pipeline(), tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match=r"is an original checkpoint, which holds a whole pipeline; .*config='<base>'"):
        load_model(str(saved("latents")), weights=str(checkpoint))


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch, remote, tmp_path):
    monkeypatch.setenv("CONCEPT_TRAK_CACHE", "/proc/nowhere")
    with pytest.raises(UserError, match="CONCEPT_TRAK_CACHE"):
        load_model(f"memory:/{remote[1]}")
    monkeypatch.delenv("CONCEPT_TRAK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "concept-trak"
