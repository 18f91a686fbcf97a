"""Where bytes lie: what a store asks of a place, and a folder of this machine. Objects are in `objects.py`."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from typing import Protocol

OWN_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


class Place(Protocol):
    """What a store needs of storage. Every failure is an `OSError`; an absent name is `FileNotFoundError`."""

    def read(self, name: str, start: int | None, end: int | None) -> bytes: ...
    def size(self, name: str) -> int | None: ...
    def modified(self, name: str) -> float | None: ...
    def names(self, folder: str) -> list[str]: ...
    def leftovers(self, folder: str) -> list[str]: ...
    def put_new(self, name: str, data: bytes) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...


class Folder:
    """A folder of this machine. A name appears with all of its bytes or not at all."""

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

    def put_new(self, name: str, data: bytes) -> None:
        with _naming(self._path(name)), self._temporary(name, data) as temporary:
            os.link(temporary, self._path(name))  # unlike a rename, a link never replaces what stands there
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
        found = (os.path.join(top, file) for top, _, files in os.walk(self._path(folder)) for file in files)
        return sorted(os.path.relpath(path, self.root).replace(os.sep, "/") for path in found)

    @contextlib.contextmanager
    def _temporary(self, name: str, data: bytes) -> Iterator[str]:
        """The bytes, safely on disk beside their final name; whatever the body does reaches the disk with it."""
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


def _is_temporary(path: str) -> bool:
    file = os.path.basename(path)
    return file.startswith(".") and file.endswith(".tmp")


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """The operating system names the temporary file, or none at all when a disk is full or broken: name `path`."""
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
