"""List the files at an address with their versions, and open a planned file again."""

import heapq
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fsspec.caching import ReadAheadCache, register_cache
from fsspec.implementations.local import LocalFileSystem

from concept_trak import UserError
from concept_trak.data.text import encodable, printable
from concept_trak.store.file_system import find_files, open_file_system
from concept_trak.store.secrets import without_secrets

Files = dict[str, dict[str, Any]]

BLOCK_BYTES = 4 << 20  # bytes of one request: long enough to hide the latency, short enough to skip unread bytes
SKIPPED_BYTES = 1 << 20  # unread bytes that are worth a request of their own, which takes some 10 to 30 ms
LOOK_BYTES = 64 << 10  # read behind such a gap, where the next one may follow
STAMPS = ("mtime", "LastModified", "last_modified", "updated", "created", "date_time")
DIGESTS = ("blob_id", "md5Hash", "md5", "Content-MD5", "crc32c", "CRC")


@dataclass(frozen=True)
class Listing:
    """Every file at an address.

    `files` are the regular ones, by name, with storage's information about each. `unreadable` are the others, by name,
    with the reason. `path` is the address inside the file system `fs`.
    """

    fs: Any
    path: str
    files: Files
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        return list(self.files) == [self.path]

    def relative(self, name: str) -> str:
        """The name of a file below the address."""
        return name.removeprefix(self.path).lstrip("/")


def canonical_uri(uri: str, resolve_links: bool = True) -> str:
    """One spelling of an address, so that one data set has one feature set.

    A local path becomes absolute, without `file://`, `.`, `..` and a slash at the end. An address of an object store
    loses the slash at its end.

    Args:
        uri: a path or a URL; a chain such as `zip://a::b` is left as it is.
        resolve_links: whether to replace symbolic links by their targets; False if workers on other machines see other
            links.
    """
    if "::" in uri or not uri:
        return uri
    path = uri.removeprefix("file://").removeprefix("local://")
    if "://" not in path:
        path = os.path.expanduser(path)
        return os.path.realpath(path) if resolve_links else os.path.abspath(path)
    return uri if uri.startswith("http") else uri.rstrip("/")


def list_files(uri: str) -> Listing:
    """Every file at an address, which is a file, or a folder with its subfolders. It makes one listing.

    Raises:
        UserError: the address does not exist, cannot be reached, or is a chain of file systems.
    """
    if "::" in uri:
        raise UserError(
            f"data.uri={uri!r} has `::`, which chains file systems, and no chain is read; give the address behind it, "
            "unpack an archive, or rename a folder that is called so"
        )
    try:
        fs, path = open_file_system(uri)
        listing = _list_local(fs, path) if isinstance(fs, LocalFileSystem) else _list_remote(fs, path)
    except UserError:
        raise
    except FileNotFoundError:  # a bucket that does not exist; a missing folder is only empty
        listing = None
    except Exception as error:  # botocore's and google's own errors are no OSErrors
        raise UserError(
            f"data.uri={uri!r} cannot be read ({type(error).__name__}: {without_secrets(error)}); check the address"
            " and the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        ) from error
    if listing is None:
        pattern = "; for a pattern, set data.uri to the folder and data.files to the pattern" if "*" in uri else ""
        raise UserError(
            f"data.uri={uri!r} does not exist; expected a file of training samples, or a folder of them{pattern}"
        )
    return listing


def _list_remote(fs: Any, path: str) -> Listing | None:
    if fs.isfile(path):
        return Listing(fs, path, {path: fs.info(path)})
    entries = find_files(fs, path)
    if not entries and not fs.exists(path):
        return None
    names = sorted(entries)
    # An etag is the same in a listing; times may be written otherwise there than where one file is asked for.
    files = {n: entries[n] if _digest(entries[n]) else fs.info(n) for n in names if entries[n]["type"] == "file"}
    return Listing(fs, path, files, {n: "of a special kind (pipe, socket or device)" for n in names if n not in files})


def _list_local(fs: Any, path: str) -> Listing | None:
    """Walk a local folder: report links to nothing, follow links to folders once, and open no pipe."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(status.st_mode):
        return Listing(fs, path, {path: _info(path, status)})
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"data.uri={path!r} is a pipe, a socket or a device; expected a file or a folder")
    files, unreadable, visited = Files(), dict[str, str](), set[str]()
    root = os.path.realpath(path)
    waiting = [(False, path)]
    while waiting:  # folders before linked ones, which are read under their own names where they have one here
        linked, folder = heapq.heappop(waiting)
        real = os.path.realpath(folder) if linked else root + folder.removeprefix(path)
        above = linked and f"{root}/".startswith(f"{real.rstrip('/')}/")
        if real in visited or above:
            unreadable[folder] = "linking to folders that are read under another name"
            continue
        visited.add(real)
        for entry in _scan(folder):
            _sort(entry, linked, files, unreadable, waiting)
    return Listing(fs, path, dict(sorted(files.items())), dict(sorted(unreadable.items())))


def _sort(
    entry: os.DirEntry[str], linked: bool, files: Files, unreadable: dict[str, str], waiting: list[tuple[bool, str]]
) -> None:
    try:
        status = entry.stat()
    except OSError:
        unreadable[entry.path] = "linking to nothing"
        return
    if stat.S_ISDIR(status.st_mode):
        heapq.heappush(waiting, (linked or entry.is_symlink(), entry.path))
    elif stat.S_ISREG(status.st_mode):
        files[entry.path] = _info(entry.path, status)
    else:
        unreadable[entry.path] = "of a special kind (pipe, socket or device)"


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); make it readable, or move it away") from None


def _info(path: str, status: os.stat_result) -> dict[str, Any]:
    return {"name": path, "size": status.st_size, "type": "file", "mtime": status.st_mtime}


def version(info: dict[str, Any]) -> str:
    """The store's own etag or digest; else size and modification time.

    Raises:
        UserError: storage gives neither, so that a changed file could not be recognized.
    """
    if digest := _digest(info):
        return digest
    stamp = next((info[key] for key in STAMPS if info.get(key)), None)
    if stamp is None:
        raise UserError(
            f"storage gives no etag and no modification time of {info.get('name', 'a file')}, so that a changed file "
            "would pass for the old one; copy the data to a folder or an object store"
        )
    return f"{info['size']}-{stamp}"


def _digest(info: dict[str, Any]) -> str:
    if etag := str(info.get("ETag") or info.get("etag") or "").strip('"'):
        return etag
    if any(info.get(key) for key in STAMPS):
        return ""
    return next((f"{info['size']}-{info[key]}" for key in DIGESTS if info.get(key)), "")


def require_version(fs: Any, path: str, planned: str) -> None:
    """Check that the file has the version that was planned.

    Raises:
        UserError: it has another version, or does not exist any more.
    """
    try:
        now = version(fs.info(path))
    except FileNotFoundError:
        now = "gone"
    if now != planned:
        raise UserError(
            f"{fs.unstrip_protocol(path)} changed while the audit ran: planned version {planned}, now {now}; start a "
            "new audit"
        )


@contextmanager
def open_planned(uri: str, planned: str, **options: Any) -> Iterator[Any]:
    """A file of the data set, open for reading in the version that was planned.

    Raises:
        UserError: it has another version, nobody may read it, or its name is not text.
    """
    if not encodable(uri):
        raise UserError(f"the name of {printable(uri)} is not UTF-8; rename it, or leave it out with data.files=")
    fs, path = open_file_system(uri)
    require_version(fs, path, planned)
    try:
        with fs.open(path, **options) as file:
            yield file
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{path} cannot be read ({error}); make it readable, or remove it from data.uri") from error


class LookAheadCache(ReadAheadCache):
    """Reads a file from its start to its end, without the bytes of large gaps that its reader passes over.

    Little is read ahead at first and behind a gap of more than `SKIPPED_BYTES`, then twice as much each time, up to the
    size of a block.
    """

    name = "lookahead"

    def __init__(self, blocksize: int, fetcher: Callable[[int, int], bytes], size: int) -> None:
        super().__init__(LOOK_BYTES, fetcher, size)
        self._most = blocksize

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        if not self.start <= (start or 0) <= self.end + SKIPPED_BYTES:
            self.blocksize = LOOK_BYTES
        elif end is None or end > self.end:
            self.blocksize = min(2 * self.blocksize, self._most)
        return super()._fetch(start, end)


register_cache(LookAheadCache, clobber=True)


class FileRange:
    """Bytes `start` up to `end` of a file, read a block at a time and nothing else, at their positions in the file.

    Behind the end it reads as zeros, `padding` of them.
    """

    def __init__(self, fs: Any, path: str, start: int, end: int, padding: int = 0) -> None:
        self._fs, self._path, self._end, self._padding = fs, path, end, padding
        self._position, self._first, self._block = start, start, b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        last = self._end + self._padding
        count = max(0, min(size, last - self._position))
        stop = self._position + count
        if stop > self._first + len(self._block) or self._position < self._first:
            self._load(max(stop, min(self._position + BLOCK_BYTES, last)))
        begin = self._position - self._first
        self._position = stop
        return self._block[begin : begin + count]

    def _load(self, stop: int) -> None:
        """The bytes from the position to `stop`; what the last block has of them is not read again."""
        overlap = self._block[self._position - self._first :] if self._first <= self._position else b""
        start, end = self._position + len(overlap), min(stop, self._end)
        more = self._fs.cat_file(self._path, start=start, end=end) if start < end else b""
        self._block, self._first = overlap + more, self._position
        self._block += bytes(stop - self._first - len(self._block))


@contextmanager
def open_range(uri: str, planned: str, start: int, end: int, padding: int = 0) -> Iterator[FileRange]:
    """A part of a file of the data set, in the version that was planned. Raises UserError if it has another one."""
    fs, path = open_file_system(uri)
    require_version(fs, path, planned)
    yield FileRange(fs, path, start, end, padding)


def path_below(source: str, uri: str) -> str:
    """The name of a source below `data.uri`; empty for that file itself."""
    fs, path = open_file_system(uri)
    return source.removeprefix(fs.unstrip_protocol(path)).strip("/")
