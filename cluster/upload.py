"""What of a working directory Ray uploads, and what makes it large."""

from collections import Counter
from collections.abc import Mapping, Sequence
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


def _listed(sizes: "Counter[str]") -> str:
    return ", ".join(f"{name} ({size / MB:.1f} MB)" for name, size in sizes.most_common(NAMED))
