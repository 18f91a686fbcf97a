"""The backends of a store: what a store needs of one, and a folder of this machine."""

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import pyarrow as pa

OWN_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
TRIES = 10
"""How often a folder is made again that another process removes because it is empty."""


class Backend(Protocol):
    """The operations that a store needs. Every failure is an `OSError`; a missing file is `FileNotFoundError`."""

    def read(self, name: str, start: int | None, end: int | None) -> bytes: ...
    def read_buffer(self, name: str) -> pa.Buffer: ...
    def size(self, name: str) -> int | None: ...
    def stat(self, name: str) -> tuple[int, float] | None: ...
    def stats(self, folder: str) -> dict[str, tuple[int, float]]: ...
    def names(self, folder: str) -> list[str]: ...
    def versions(self, folder: str) -> dict[str, str]: ...
    def children(self, folder: str) -> list[str]: ...
    def leftovers(self, folder: str) -> list[str]: ...
    def is_linked(self, name: str) -> bool: ...
    def put_new(self, name: str, data: bytes) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def remove_empty(self, folder: str) -> None: ...
    def own_folders_removed(self) -> contextlib.AbstractContextManager[None]: ...


class LocalBackend:
    """A folder of this machine. A file appears with all of its bytes or not at all."""

    def __init__(self, root: str):
        self.root = root

    def read(self, name: str, start: int | None, end: int | None) -> bytes:
        first = start or 0
        with _naming(self._path(name)), open(self._path(name), "rb") as file:
            file.seek(first)
            return file.read(-1 if end is None else max(end - first, 0))

    def read_buffer(self, name: str) -> pa.Buffer:
        with _naming(self._path(name)), open(self._path(name), "rb", buffering=0) as file:
            buffer = pa.allocate_buffer(os.fstat(file.fileno()).st_size)
            rest = memoryview(buffer)
            while len(rest) and (count := file.readinto(rest)):
                rest = rest[count:]
            return buffer.slice(0, len(buffer) - len(rest))

    def size(self, name: str) -> int | None:
        path = self._path(name)
        return os.path.getsize(path) if os.path.isfile(path) else None

    def stat(self, name: str) -> tuple[int, float] | None:
        with contextlib.suppress(OSError):  # as `os.path.isfile`: links in a circle are no file
            status = os.stat(self._path(name))
            return (status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None
        return None

    def stats(self, folder: str) -> dict[str, tuple[int, float]]:
        return {name: status for name in self.names(folder) if (status := self.stat(name))}

    def names(self, folder: str) -> list[str]:
        return [name for name in self._files(folder) if not _is_temporary(name)]

    def versions(self, folder: str) -> dict[str, str]:
        return {name: stamp for name in self.names(folder) if (stamp := self._stamp(name))}

    def children(self, folder: str) -> list[str]:
        try:
            entries = [entry for entry in os.scandir(self._path(folder)) if not _is_temporary(entry.name)]
        except FileNotFoundError:
            return []
        # A folder without any file is none, as on an object store.
        folders = [e for e in entries if _is_folder(e)]
        files = [e.name for e in entries if e not in folders]
        return sorted(files + [f"{e.name}/" for e in folders if next(_files_below(e.path, ()), None)])

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

    def remove_empty(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # it has files, or does not exist
            os.rmdir(self._path(folder))

    @contextlib.contextmanager
    def own_folders_removed(self) -> Iterator[None]:
        """Make the root for the body. Afterwards remove those folders that were made here and are empty.

        Another process may write there at any moment: a folder with a file is not removed, and `_temporary` makes a
        folder again that is removed before its file is there.
        """
        own = list[str]()
        try:
            with _naming(self.root):
                for folder in _missing(self.root):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder)
                        own.append(folder)
            yield
        finally:
            for folder in reversed(own):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _stamp(self, name: str) -> str:
        """Of a file, "" if it is gone; another file under the same name has another inode, size or time."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self._path(name))
            return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
        return ""

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
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
        try:
            with _opened(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync_folder(folder)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _opened(path: str) -> BinaryIO:
    """A new file, in a folder that is made if there is none."""
    for _ in range(TRIES - 1):
        # Another process's probe removed the folder: after it was made, or while `makedirs` looked what was in its way.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return open(path, "xb")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "xb")


def _missing(folder: str) -> list[str]:
    """The folder and those above it, as far as there is nothing under their names, the highest first."""
    missing = list[str]()
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing[::-1]


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
