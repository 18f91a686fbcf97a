"""The store: files are created by put-if-absent, and after any error the file is read back to decide.

Nothing is renamed, and nothing of another attempt is deleted. So a zombie worker is harmless: its create is refused, or
finds its own bytes.
"""

import contextlib
import errno
import io
import time
import uuid

import fsspec
import pyarrow as pa

from concept_trak import UserError
from concept_trak.store.backends import Backend, LocalBackend
from concept_trak.store.object_backend import FsspecBackend
from concept_trak.store.secrets import refuse_credentials, without_secrets

FOLDERS = ("audits", "features", "sources", "states", "components")
"""The folders of results; the store lists, reads and removes nothing beside them."""


class Store:
    """A folder on storage: `/abs`, `file:///abs`, `s3://bucket/prefix`, `memory://name`, or another fsspec scheme.

    The object has only the address, so it can be sent to other processes. The file system is made inside the process
    that uses it, without a listing cache. Names are relative to the store and use "/".

    Raises:
        UserError: a relative path, an address without a bucket, or one with credentials.
        OSError: from every method, if storage fails; the message has no secrets.
    """

    def __init__(self, uri: str):
        self.scheme, root = _parse(uri)
        self.uri = uri.rstrip("/")
        self._place: Backend = LocalBackend(root) if self.scheme == "file" else FsspecBackend(self.scheme, root)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes `start` (from 0) up to `end` (exclusive) of a file, all by default. Raises FileNotFoundError."""
        return self._place.read(_checked(name), start, end)

    def read_buffer(self, name: str) -> pa.Buffer:
        """All bytes of a file in Arrow's memory, which serves one file after another. Raises FileNotFoundError.

        For large files: a new `bytes` of 34 MB takes four times as long as its read from a local disk's cache.
        """
        return self._place.read_buffer(_checked(name))

    def open(self, name: str) -> "RangedFile":
        """A file for readers that seek, such as Parquet's: every read is one ranged request, and nothing is cached.

        Raises:
            FileNotFoundError: there is no file of this name.
        """
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.uri}/{name} does not exist")
        return RangedFile(self, name, size)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if there is no such file."""
        return self._place.size(_checked(name))

    def modified(self, name: str) -> float | None:
        """When a file was last written, in unix seconds by the storage's own clock; None if there is no such file."""
        status = self.stat(name)
        return status and status[1]

    def stat(self, name: str) -> tuple[int, float] | None:
        """(`size`, `modified`) of a file, which costs S3 one request; None if there is no such file."""
        return self._place.stat(_checked(name))

    def stats(self, folder: str) -> dict[str, tuple[int, float]]:
        """`stat` of every file under the folder, sorted by name, which costs S3 a fresh listing and nothing more."""
        return dict(sorted(self._place.stats(folder.strip("/")).items()))

    def names(self, folder: str) -> list[str]:
        """Every file under the folder, from a fresh listing, sorted; [] if there is no such folder."""
        return self._place.names(folder.strip("/"))

    def versions(self, folder: str) -> dict[str, str]:
        """Every file under the folder with its version, from a fresh listing; another file under a name has another.

        "" stands for a version where storage gives none.
        """
        return self._place.versions(folder.strip("/"))

    def children(self, folder: str) -> list[str]:
        """The names directly in the folder, sorted, those of folders with "/" at the end; [] if there is no folder."""
        return self._place.children(folder.strip("/"))

    def leftovers(self, folder: str) -> list[str]:
        """Temporary files that killed writes may have left under the folder; `names` leaves them out."""
        return self._place.leftovers(folder.strip("/"))

    def is_linked(self, name: str) -> bool:
        """Whether a link inside the store leads to the file's folder, so that other stores may use it too."""
        return self._place.is_linked(_checked(name))

    def create(self, name: str, data: bytes) -> bool:
        """Put-if-absent: True if the file has these bytes afterwards, False if it has other bytes.

        A refusal does not prove that another process wrote the file: if the reply to a PUT is lost, the client's retry
        is refused by its own write. So after *any* error the file is read back; the error is raised only if it cannot
        be read.
        """
        try:
            self._place.put_new(_checked(name), data)
        except OSError as error:
            return self._decide(name, data, error)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Overwrite a hint (progress, latest). Results are created and never replaced."""
        self._place.put(_checked(name), data)

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""
        self._place.delete(_checked(name))

    def remove_empty(self, folder: str) -> None:
        """Remove a folder without files, if there is one; a writer makes a folder again that it needs."""
        self._place.remove_empty(folder.strip("/"))

    def clock(self) -> float:
        """The storage's own time in unix seconds, as `modified` gives it: that of a file written now."""
        name = f"probe-{uuid.uuid4().hex}"
        try:
            self.create(name, b"")
            written = self.modified(name)
        finally:
            self.delete(name)
        return time.time() if written is None else written

    def probe(self) -> None:
        """Check that the store can be written and refuses a second create of one name. It leaves no file and no folder.

        Raises:
            UserError: an unknown scheme, a missing bucket, refused credentials, an unreachable server, or a store
                that lets a second create overwrite the first. One message, without secrets.
        """
        _require_known(self.scheme, self.uri)
        for folder in FOLDERS:
            if self.scheme == "file" and self.size(folder) is not None:
                raise UserError(f"{self.uri}/{folder} is a file, where the store needs a folder; use another store")
        name = f"probe-{uuid.uuid4().hex}"
        try:
            with self._place.own_folders_removed():
                has_first = self._create_twice(name)
        except OSError as error:
            raise UserError(f"store {self.uri} cannot be used: {_explain(error)}") from error
        if not has_first:
            raise UserError(
                f"store {self.uri}: a second create of the same name overwrote the first. Expected storage that refuses"
                " it (If-None-Match: * on S3, exclusive links on a file system), because two attempts at one shard"
                " must not replace each other. Use a store with conditional create, e.g. AWS S3 or a local folder."
            )

    def _decide(self, name: str, data: bytes, error: OSError) -> bool:
        """Whether the file of a failed create has these bytes. Raises the create's error if it cannot be read."""
        with contextlib.suppress(OSError):  # the same problem prevented the write, whose error came first
            return self.read(name) == data
        raise error

    def _create_twice(self, name: str) -> bool:
        """Whether the second of two creates of one name was refused, and the file has the bytes of the first."""
        first = self.create(
            name, b"first"
        )  # if this raises, there is no file to delete, so there is one error and not two
        try:
            return first and not self.create(name, b"second")
        finally:
            self.delete(name)


class RangedFile(io.RawIOBase):
    """A file of a store that reads only the requested ranges. It raises the errors of the store."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size, self._position = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._position + size, self._size)
        data = self._store.read(self._name, self._position, end) if end > self._position else b""
        self._position += len(data)
        return data


def _parse(uri: str) -> tuple[str, str]:
    """Scheme and root: ("file", "/abs/folder") or ("s3", "bucket/prefix")."""
    refuse_credentials("store", uri)
    scheme, root = uri.split("://", 1) if "://" in uri else ("file", uri)
    root = root.rstrip("/")
    if scheme == "file" and not root.startswith("/"):
        raise UserError(
            f"store {uri!r} is a relative path, which means another folder on another machine. Expected an absolute"
            " path or an address: write /data/results, file:///data/results, s3://bucket/prefix."
        )
    if not scheme or not root:
        raise UserError(f"store {uri!r} names no place. Expected s3://bucket/prefix or an absolute path.")
    return scheme, root


def _checked(name: str) -> str:
    assert not {"", ".."} & set(name.split("/")), f"not a name inside the store: {name!r}"
    return name


def _require_known(scheme: str, uri: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"store {uri}: {without_secrets(error)}. Expected file, s3, memory or another scheme of fsspec whose"
            " package is installed: correct the address or install the package."
        ) from error


def _explain(error: OSError) -> str:
    """The message for a kind of failure: what happened, what was expected, and what to do."""
    text = without_secrets(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)) or error.errno == errno.ELOOP:
        return f"{text}. Expected a folder, or nothing: a file, a pipe or a link is in its way. Use another store."
    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
        return f"{text}. Expected a file system with hard links, as exclusive create needs: use another, or S3."
    if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        return f"{text}. Expected storage that can be written: mount it so, make room, or use another store."
    if isinstance(error, FileNotFoundError):
        return f"{text}. Expected a bucket that exists: create it, or correct the address."
    if isinstance(error, PermissionError):
        return (
            f"{text}. Expected permission to write, read and delete there: check the folder's owner, or the credentials"
            " in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and the bucket's policy."
        )
    return (
        f"{text}. Expected storage that answers and supports exclusive create (If-None-Match: * on S3, hard links on a"
        " file system): check the address and AWS_ENDPOINT_URL, or use another store."
    )
