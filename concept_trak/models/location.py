"""The address of a model: a local path, a Hub id, or a URL of object storage. Each becomes a local path, once per node.

A copy from object storage is kept in the cache under a digest of its files' names and versions. So a changed model is
fetched again, and an unchanged one is fetched once per node, by one process, while the others wait for it.
"""

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
from filelock import FileLock
from huggingface_hub import constants

from concept_trak import UserError
from concept_trak.data.files import version
from concept_trak.models.pipeline_folder import CLASSES, SETTINGS, choose_files, role
from concept_trak.store.file_system import open_file_system
from concept_trak.store.secrets import without_secrets

log = logging.getLogger(__name__)
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")


def local_path(address: str, key: str) -> Path:
    """The local path of a file or a folder, which is fetched if it is remote.

    Args:
        address: a local path, a Hub id (`org/name`, `org/name@revision`) or an address such as `s3://bucket/model`.
        key: the setting that has it, for messages.

    Raises:
        UserError: it cannot be reached, or does not exist.
    """
    if "://" in address and not address.startswith("file://"):
        return _fetched(address, key)
    if not is_hub_id(address):
        return Path(address.removeprefix("file://")).expanduser()
    try:
        return hub_folder(address)
    except UserError as error:
        raise UserError(f"{key}={address!r} is no local path, and as a Hub id: {error}") from error


def is_hub_id(address: str) -> bool:
    """Whether an address has the form of a Hub id and is not a local path."""
    return HUB_ID.fullmatch(address) is not None and not Path(address).exists()


def cache_root() -> Path:
    """`CONCEPT_TRAK_CACHE`; else `concept-trak` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "concept-trak"
    return Path(os.environ.get("CONCEPT_TRAK_CACHE") or default)


def cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled once: `fill` gets an empty folder, which is renamed when it is complete.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"the cache {cache_root()} cannot be written ({error}); set CONCEPT_TRAK_CACHE to a folder"
        ) from error
    try:
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                fill(temporary)
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def hub_folder(address: str, settings_only: bool = False) -> Path:
    """The files of a Hub repository that a model loads, from this machine's Hub cache or from the Hub.

    Args:
        address: `org/name` or `org/name@revision`.
        settings_only: without weights.

    Raises:
        UserError: they are not in the cache and the Hub cannot be reached or does not have them.
    """
    repository, _, revision = address.partition("@")
    options: dict[str, Any] = {"revision": revision or None}
    reason: Exception | None = None
    if not constants.HF_HUB_OFFLINE:
        try:
            names = huggingface_hub.HfApi().list_repo_files(repository, **options)
            files = [name for name in needed_files(names) if not settings_only or name.endswith(SETTINGS)]
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=files, **options))
        except UserError:
            raise
        except Exception as error:  # a failed connection has no OSError's class; the cache may still have the model
            reason = error
    try:
        return Path(huggingface_hub.snapshot_download(repository, local_files_only=True, **options))
    except (OSError, ValueError) as error:
        remedy = "unset HF_HUB_OFFLINE" if reason is None else "check the name, the network and HF_TOKEN"
        raise UserError(
            f"{address} is not in this machine's Hub cache and cannot be fetched ({type(reason or error).__name__}); "
            f"{remedy}, or on a machine with a network run `hf download {repository}` and set the key to the folder it "
            "prints"
        ) from (reason or error)


def needed_files(names: Iterable[str]) -> list[str]:
    """The files of a folder that are loaded as a model or an adapter, out of all names below it.

    In a pipeline these are model_index.json and each part's own files; else settings and safetensors of the folder
    itself.
    """
    every = list(names)
    if "model_index.json" not in every:
        return sorted(n for n in every if "/" not in n and n.endswith((*SETTINGS, ".safetensors")) and n[0] != ".")
    parts: dict[str, list[str]] = {}
    for part, _, name in (n.partition("/") for n in every):
        if role(part) in CLASSES and name and "/" not in name:
            parts.setdefault(part, []).append(name)
    return sorted(
        ["model_index.json", *(f"{p}/{n}" for p, own in parts.items() for n in choose_files(p, own, p).names)]
    )


def _fetched(address: str, key: str) -> Path:
    """A copy of a file or folder of object storage, in the cache."""
    try:
        fs, root = open_file_system(address)
        single = fs.isfile(root)
        listing = {root: fs.info(root)} if single else fs.find(root, detail=True)
    except Exception as error:  # botocore's and google's own errors are not OSErrors
        raise UserError(
            f"{key}={address!r} cannot be read ({type(error).__name__}: {without_secrets(error)}); check the address "
            "and the credentials in the environment"
        ) from error
    base = root.rpartition("/")[0] if single else root.rstrip("/")
    infos = {name.removeprefix(base).lstrip("/"): info for name, info in listing.items()}
    names = list(infos) if single else needed_files(infos)
    if not names:
        raise UserError(
            f"{key}={address!r} does not exist, or holds no safetensors; expected a file or a folder of a model"
        )
    digest = hashlib.sha256(repr(sorted((name, version(infos[name])) for name in names)).encode()).hexdigest()

    def fetch(folder: Path) -> None:
        size = sum(infos[name]["size"] for name in names)
        log.info("%s=%s: fetching %d files, %.1f MB, into %s", key, address, len(names), size / 1e6, cache_root())
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{base}/{name}", str(target))
            if target.stat().st_size != infos[name]["size"]:
                raise UserError(f"{key}={address!r}: {name} changed while it was fetched; start again")

    folder = cached_folder(f"fetched-{digest[:32]}", fetch)
    return folder / names[0] if single else folder
