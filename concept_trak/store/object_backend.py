"""Objects behind fsspec: S3, and whatever else it knows that refuses a second exclusive write of one name."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import pyarrow as pa

from concept_trak.store.secrets import without_secrets

RANGE_BYTES = 16 << 20  # one connection to S3 gives about 90 MB/s, so larger objects are read as parallel ranges
MEMORY_LOCK = threading.RLock()  # fsspec's memory files share one cursor per file, for readers too
NO_LISTING_CACHE = {"use_listings_cache": False, "skip_instance_cache": True}
S3_OPTIONS = {
    "max_concurrency": 1,  # whole small objects in one GET; large ones are split here, by RANGE_BYTES
    "config_kwargs": {"max_pool_connections": 64, "read_timeout": 60},
}


class FsspecBackend:
    """Objects behind an fsspec scheme. Endpoint and credentials come from the environment (`AWS_ENDPOINT_URL`, …)."""

    def __init__(self, scheme: str, root: str):
        self.scheme, self.root = scheme, root
        self._lock = MEMORY_LOCK if scheme == "memory" else contextlib.nullcontext()
        self._owner, self._opened = 0, None

    def read(self, name: str, start: int | None, end: int | None) -> bytes:
        path = self._path(name)
        with self._storage("read", name) as files:
            if start is not None or end is not None:
                return files.cat_file(path, start=start, end=end)
            size = files.info(path)["size"]
            if size <= RANGE_BYTES:
                return files.cat_file(path)
            starts = list(range(0, size, RANGE_BYTES))
            ends = [*starts[1:], size]
            return b"".join(files.cat_ranges([path] * len(starts), starts, ends, on_error="raise"))

    def read_buffer(self, name: str) -> pa.Buffer:
        return pa.py_buffer(self.read(name, None, None))

    def size(self, name: str) -> int | None:
        try:
            with self._storage("look up", name) as files:
                info = files.info(self._path(name))
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None

    def stat(self, name: str) -> tuple[int, float] | None:
        with contextlib.suppress(FileNotFoundError), self._storage("look up", name) as files:
            info = files.info(self._path(name))
            return _status(files, info) if info["type"] == "file" else None
        return None

    def stats(self, folder: str) -> dict[str, tuple[int, float]]:
        listed = self._found(folder, detail=True)
        with self._storage("look up", folder) as files:
            return {self._relative(path): _status(files, info) for path, info in listed.items()}

    def names(self, folder: str) -> list[str]:
        return sorted(map(self._relative, self._found(folder, detail=False)))

    def versions(self, folder: str) -> dict[str, str]:
        return {self._relative(path): _stamp(info) for path, info in self._found(folder, detail=True).items()}

    def children(self, folder: str) -> list[str]:
        try:
            with self._storage("list", folder) as files:
                files.invalidate_cache()
                entries = files.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        folders = {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] == "directory" for entry in entries}
        return sorted(f"{name}/" if is_folder else name for name, is_folder in folders.items())

    def _found(self, folder: str, detail: bool) -> Any:
        """Every path under the folder; with what the listing says of each, by path."""
        try:
            with self._storage("list", folder) as files:
                files.invalidate_cache()
                return files.find(self._path(folder), detail=detail)
        except FileNotFoundError:
            return {}

    def is_linked(self, name: str) -> bool:
        return False  # objects have no links

    def leftovers(self, folder: str) -> list[str]:
        return []  # an object appears whole; parts of a broken upload are no objects and are never listed

    def put_new(self, name: str, data: bytes) -> None:
        # chunksize keeps it one PUT, which carries If-None-Match; some servers ignore the header on multipart uploads
        whole = {"chunksize": len(data) + 1} if self.scheme in ("s3", "s3a") else {}
        with self._storage("create", name) as files:
            files.pipe_file(self._path(name), data, mode="create", **whole)

    def put(self, name: str, data: bytes) -> None:
        with self._storage("replace", name) as files:
            files.pipe_file(self._path(name), data)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._storage("delete", name) as files:
            files.rm_file(self._path(name))

    def remove_empty(self, folder: str) -> None:
        pass  # a folder without objects is none

    def own_folders_removed(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # a folder without objects is none

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _relative(self, path: str) -> str:
        return path.lstrip("/").removeprefix(self.root.strip("/") + "/")

    @contextlib.contextmanager
    def _storage(self, verb: str, name: str) -> Iterator[Any]:
        """The file system of this process; whatever a client library raises comes out as an OSError without secrets."""
        with self._lock:
            try:
                yield self._files()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{self.scheme}://{self.root}/{name} does not exist") from error
            except PermissionError as error:
                raise PermissionError(self._failed(verb, name, error)) from error
            except Exception as error:  # botocore's and google's own errors are no OSErrors
                # NoCredentialsError, PartialCredentialsError and the like: nobody is refused, for nobody asked
                kind = PermissionError if "Credentials" in type(error).__name__ else OSError
                raise kind(self._failed(verb, name, error)) from error

    def _files(self) -> Any:
        if self._owner != os.getpid():  # s3fs does not survive a fork: each process makes its own
            options = S3_OPTIONS if self.scheme in ("s3", "s3a") else {}
            self._opened = fsspec.filesystem(self.scheme, **NO_LISTING_CACHE, **options)
            self._owner = os.getpid()
        return self._opened

    def _failed(self, verb: str, name: str, error: Exception) -> str:
        return f"could not {verb} {self.scheme}://{self.root}/{name}: {type(error).__name__}: {without_secrets(error)}"


def _status(files: Any, info: Mapping[str, Any]) -> tuple[int, float]:
    """(bytes, unix time of writing) of an object. S3 returns the time with a listing, others may need a request."""
    return info["size"], (info.get("LastModified") or files.modified(info["name"])).timestamp()


STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "created", "mtime")


def _stamp(info: Mapping[str, Any]) -> str:
    """The version of an object, as its listing has it; "" where it has none."""
    stamp = next((info[key] for key in STAMPS if info.get(key)), None)
    return "" if stamp is None else f"{info['size']}-{stamp}".replace('"', "")
