"""What of a working directory Ray uploads, and what makes it large."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

MB = 1e6
LARGE = 50 * MB
"""Bytes of files, above which a submission says what they are: each job carries them to every node."""
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
        """The largest folders of the top level, and the largest files, as text for a message."""
        folders = Counter[str]()
        for path, size in self.files.items():
            folders[path.partition("/")[0] + ("/" if "/" in path else "")] += size
        return f"{_listed(folders)}; the largest files are {_listed(Counter(self.files))}"

    def __str__(self) -> str:
        return f"{self.bytes / MB:.1f} MB in {len(self.files)} files: {self.largest}"


def measure_upload(folder: str | Path, excludes: Sequence[str]) -> Upload:
    """What Ray would upload of a folder: all but what `excludes`, .gitignore and .rayignore name.

    Ray's own walk is used, so that this is what is uploaded and not what this project thinks it is.
    """
    root, files = Path(folder).absolute(), dict[str, int]()

    def add(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(root).as_posix()] = path.stat().st_size

    _dir_travel(root, [_get_excludes(root, list(excludes))], add, include_gitignore=True)
    return Upload(files)


def not_uploaded(folder: str | Path, excludes: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The files that a folder has, and that its upload would lack; hidden files in a folder of `paths` do not count.

    Args:
        folder: what is uploaded.
        excludes: as of `measure_upload`.
        paths: files and folders, relative to `folder`; those that do not exist are passed over.
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
