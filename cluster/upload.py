"""Which files of a working directory Ray uploads, and which are the largest."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

MB = 1e6
LARGE = 50 * MB
"""Bytes; a submission lists the files of a larger upload, because every node receives them."""
NAMED = 3


@dataclass(frozen=True)
class Upload:
    """The files that are uploaded, by their path below the working directory, with their sizes in bytes."""

    files: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def largest(self) -> str:
        """The largest top-level folders and the largest files, as text for a message."""
        folders = Counter[str]()
        for path, size in self.files.items():
            folders[path.partition("/")[0] + ("/" if "/" in path else "")] += size
        return f"{_listed(folders)}; the largest files are {_listed(Counter(self.files))}"

    def __str__(self) -> str:
        return f"{self.bytes / MB:.1f} MB in {len(self.files)} files: {self.largest}"


def measure_upload(folder: str | Path, excludes: Sequence[str]) -> Upload:
    """The files of a folder that Ray would upload: all that `excludes`, .gitignore and .rayignore do not name.

    Ray's own function lists them, so the result cannot differ from the upload.
    """
    root, files = Path(folder).absolute(), dict[str, int]()

    def add(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(root).as_posix()] = path.stat().st_size

    _dir_travel(root, [_get_excludes(root, list(excludes))], add, include_gitignore=True)
    return Upload(files)


def not_uploaded(folder: str | Path, excludes: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Files of a folder that its upload would lack. Hidden files do not count, unless `paths` names them.

    Args:
        folder: the folder that is uploaded.
        excludes: as in `measure_upload`.
        paths: the files and folders to look at, relative to `folder`; those that do not exist are ignored.
    """
    uploaded = measure_upload(folder, excludes).files
    return sorted({name for path in paths for name in _files(str(folder), path)} - uploaded.keys())


def _files(folder: str, path: str) -> Iterator[str]:
    top = os.path.join(folder, path)
    if os.path.isfile(top):
        yield os.path.normpath(path)
    for root, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(root, name), folder) for name in names if not name.startswith("."))


def _listed(sizes: "Counter[str]") -> str:
    return ", ".join(f"{name} ({size / MB:.1f} MB)" for name, size in sizes.most_common(NAMED))
