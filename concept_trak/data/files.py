"""Which files lie at an address, which version of each, and how one that was planned is opened again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from concept_trak.data.shard import Shard
from concept_trak.store.secrets import without_secrets

BLOCK_BYTES = 4 << 20  # one request: long enough that its wait does not count, short enough to skip what is not wanted


def list_files(uri: str) -> tuple[Any, str, dict[str, dict[str, Any]]]:
    """(file system, path, every file there by name with what storage says of it); hidden ones are left out.

    `uri` is one file, or a folder searched to its leaves. One listing, however many files.

    Raises:
        ValueError: it does not exist, or cannot be reached.
    """
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    try:
        if fs.isfile(path):
            return fs, path, {path: fs.info(path)}
        found = fs.find(path, detail=True)
        exists = bool(found) or fs.exists(path)
    except FileNotFoundError:  # a bucket that does not exist; a missing folder is only empty
        found, exists = {}, False
    except Exception as error:  # botocore's and google's own errors are no OSErrors
        raise ValueError(
            f"data.uri={uri!r} cannot be read ({type(error).__name__}: {without_secrets(error)}); check the address"
            " and the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        ) from error
    if not exists:
        raise ValueError(f"data.uri={uri!r} does not exist; expected a file of training samples, or a folder of them")
    names = sorted(name for name in found if not name.rpartition("/")[2].startswith((".", "_")))
    # An etag is the same in a listing; times may be written otherwise there than where one file is asked for.
    return fs, path, {name: found[name] if _etag(found[name]) else fs.info(name) for name in names}


def version(info: dict[str, Any]) -> str:
    """The store's own etag; else size and modification time."""
    if etag := _etag(info):
        return etag
    stamp = info.get("mtime", info.get("LastModified", info.get("created", "")))
    return f"{info['size']}-{stamp}"


def _etag(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or "").strip('"')


def require_version(fs: Any, path: str, planned: str) -> None:
    """Nothing where the file is the one that was planned.

    Raises:
        ValueError: it is another version now, or gone.
    """
    try:
        now = version(fs.info(path))
    except FileNotFoundError:
        now = "gone"
    if now != planned:
        raise ValueError(
            f"{fs.unstrip_protocol(path)} changed while the audit ran: planned version {planned}, now {now}; start a "
            "new audit"
        )


@contextmanager
def open_planned(shard: Shard, **ways: Any) -> Iterator[Any]:
    """The shard's file, open for reading in the version that was planned."""
    fs, path = fsspec.core.url_to_fs(shard.source, use_listings_cache=False)
    require_version(fs, path, shard.version)
    with fs.open(path, **ways) as file:
        yield file


def path_below(source: str, uri: str) -> str:
    """What a file is called below `data.uri`; empty for that file itself."""
    fs, path = fsspec.core.url_to_fs(uri)
    return source.removeprefix(fs.unstrip_protocol(path)).strip("/")
