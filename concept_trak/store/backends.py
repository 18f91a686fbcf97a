"""The backends of a store: a folder of this machine, and object storage through fsspec.

Object storage is S3, or any other that fsspec supports and that refuses a second exclusive write of one name.
"""

import contextlib
import errno
import os
import re
import threading
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import fsspec

from concept_trak.store.secrets import without_secrets

OWN_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


class Backend(Protocol):
    """The operations that a store needs. Every failure is an `OSError`; a missing file is `FileNotFoundError`."""

    def read(self, name: str, start: int | None, end: int | None) -> bytes: ...
    def size(self, name: str) -> int | None: ...
    def modified(self, name: str) -> float | None: ...
    def names(self, folder: str) -> list[str]: ...
    def leftovers(self, folder: str) -> list[str]: ...
    def is_linked(self, name: str) -> bool: ...
    def put_new(self, name: str, data: bytes) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


class LocalBackend:
    """A folder of this machine. A file appears with all of its bytes or not at all."""

    def __init__(self, root: str):
        self.root = root

    def read(self, name: str, start: int | None, end: int | None) -> bytes:
        first = start or 0
        with _naming(self._path(name)), open(self._path(name), "rb") as file:
            file.seek(first)
            return file.read(-1 if end is None else max(end - first, 0))

    def size(self, name: str) -> int | None:
        path = self._path(name)
        return os.path.getsize(path) if os.path.isfile(path) else None

    def modified(self, name: str) -> float | None:
        path = self._path(name)
        return os.path.getmtime(path) if os.path.isfile(path) else None

    def names(self, folder: str) -> list[str]:
        return [name for name in self._files(folder) if not _is_temporary(name)]

    def leftovers(self, folder: str) -> list[str]:
        return [name for name in self._files(folder) if OWN_TEMPORARY.fullmatch(os.path.basename(name))]

    def is_linked(self, name: str) -> bool:
        folder = os.path.dirname(name)
        real = os.path.realpath(self._path(folder))
        return os.path.normpath(os.path.join(os.path.realpath(self.root), folder)) != real

    def put_new(self, name: str, data: bytes) -> None:
        with _naming(self._path(name)), self._temporary(name, data) as temporary:
            os.link(temporary, self._path(name))  # unlike a rename, a link never replaces a file
            os.unlink(temporary)

    def put(self, name: str, data: bytes) -> None:
        with _naming(self._path(name)), self._temporary(name, data) as temporary:
            os.replace(temporary, self._path(name))

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _files(self, folder: str) -> list[str]:
        top = self._path(folder)
        if not os.path.lexists(top) or os.path.isfile(top):
            return []
        return sorted(os.path.relpath(path, self.root).replace(os.sep, "/") for path in _files_below(top, ()))

    @contextlib.contextmanager
    def _temporary(self, name: str, data: bytes) -> Iterator[str]:
        """A temporary file with the bytes in the folder of the final name. Both it and the body's changes are synced to
        disk."""
        folder = os.path.dirname(self._path(name))
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync_folder(folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _files_below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Every file, also behind links, and links to nothing. A folder that cannot be listed raises an error.

    Args:
        folder: where to look.
        above: the real paths of the folders around it; a link to one of them is not followed again.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except FileNotFoundError:
        if os.path.islink(folder):
            raise OSError(f"{folder} is a link to nothing: mount its disk, or remove the link") from None
        return  # it was removed since it was listed
    for entry in entries:
        if _is_folder(entry):
            yield from _files_below(entry.path, (*above, real))
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # links in a circle lead to nothing
            raise
        return False


def _is_temporary(path: str) -> bool:
    file = os.path.basename(path)
    return file.startswith(".") and file.endswith(".tmp")


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Raise errors of the operating system with the name `path`: they name the temporary file, or no file at all."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

    def size(self, name: str) -> int | None:
        try:
            with self._storage("look up", name) as files:
                info = files.info(self._path(name))
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None

    def modified(self, name: str) -> float | None:
        with contextlib.suppress(FileNotFoundError), self._storage("look up", name) as files:
            return files.modified(self._path(name)).timestamp()
        return None

    def names(self, folder: str) -> list[str]:
        try:
            with self._storage("list", folder) as files:
                files.invalidate_cache()
                paths = files.find(self._path(folder))
        except FileNotFoundError:
            return []
        prefix = self.root.strip("/") + "/"
        return sorted(path.lstrip("/").removeprefix(prefix) for path in paths)

    def is_linked(self, name: str) -> bool:
        return False  # objects have no links

    def leftovers(self, folder: str) -> list[str]:
        return []  # an object appears whole; parts of an interrupted upload are not objects and are never listed

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

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _storage(self, verb: str, name: str) -> Iterator[Any]:
        """The file system of this process. Every error of a client library becomes an OSError without secrets."""
        with self._lock:
            try:
                yield self._files()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{self.scheme}://{self.root}/{name} does not exist") from error
            except PermissionError as error:
                raise PermissionError(self._failed(verb, name, error)) from error
            except Exception as error:  # botocore's and google's own errors are not OSErrors
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
