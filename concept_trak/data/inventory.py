"""The files at `data.uri`: those that samples use, and counts of everything that is left out.

Nothing is skipped in silence. Things that no sample uses become a `LeftOut`, which is shown before a run and saved with
its results.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import unquote

from fsspec.utils import glob_translate

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.files import Files, Listing
from concept_trak.data.shard import Source
from concept_trak.data.text import printable

EXAMPLES = 3
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "lost+found", "#recycle", "$recycle.bin", "system volume information")
)
"""Folders, in lower case, that operating systems and network drives create."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that mark a split in the names of files and folders, as in Hugging Face `datasets`."""
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
_SPLIT_FOLDER = re.compile(rf"({'|'.join(_SPLIT_OF)})[-_ ]?(?:\d+|images?|imgs?|data|set)?")
REMEDIES = {
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"), ", compressed: unpack them"),
    ".arrow": ", of save_to_disk: write them with to_parquet",
}


@dataclass(frozen=True)
class LeftOut:
    """Things of one kind at `data.uri` that no sample uses.

    `kind` is file, member, column or tensor; `names` are a few of them.
    """

    kind: str
    reason: str
    count: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.count} {self.kind}{'' if self.count == 1 else 's'} {self.reason}"


@dataclass(frozen=True)
class Survey:
    """A data set before it is read: its sources by name, what is left out, and how many files of which format."""

    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...] = ()
    files: int = 0
    format: str = ""
    listing: str = ""
    """A hash over the sources and their versions, where their indices are on storage."""
    vocabulary: int = 0
    """Labels and words, those of every source added up."""


@dataclass
class LeftOutCounts:
    """Counts what is left out, by kind and reason, and keeps a few names of each."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    names: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, kind: str, reason: str, name: str, count: int = 1) -> None:
        self.counts[kind, reason] = self.counts.get((kind, reason), 0) + count
        examples = self.names.setdefault((kind, reason), [])
        if len(examples) < EXAMPLES:
            examples.append(printable(name))

    def extend(self, left_out: Iterable[LeftOut]) -> None:
        for entry in left_out:
            self.add(entry.kind, entry.reason, "", entry.count)
            self.names[entry.kind, entry.reason] = [
                *filter(None, self.names[entry.kind, entry.reason]), *entry.names
            ][:EXAMPLES]  # fmt: skip

    def left_out(self) -> tuple[LeftOut, ...]:
        """The most first."""
        order = sorted(self.counts, key=lambda key: (-self.counts[key], key))
        return tuple(LeftOut(*key, self.counts[key], tuple(self.names[key])) for key in order)


def describe_left_out(left_out: Sequence[LeftOut]) -> str:
    """One line for people: `left out: 3 files ending .jfif (a.jfif, ...)`; empty where nothing is left out."""
    parts = [f"{entry} ({', '.join(entry.names)}{', ...' * (entry.count > len(entry.names))})" for entry in left_out]
    return f"left out: {'; '.join(parts)}" if parts else ""


def select_files(listing: Listing, data: DataConfig, tally: LeftOutCounts) -> Files:
    """The files that may hold samples: regular, not hidden, of the pattern `data.files`.

    A name that begins with a dot is hidden, and so is everything in such a folder or in one of an operating system.

    Raises:
        UserError: no file has the pattern.
    """
    for name, reason in listing.unreadable.items():
        tally.add("file", reason, listing.relative(name))
    files = Files()
    for name, info in listing.files.items():
        if is_hidden(listing.relative(name)):
            tally.add("file", "with hidden names", listing.relative(name))
        else:
            files[name] = info
    if data.files and not any(matches(listing.relative(name), data.files) for name in files):
        examples = ", ".join(printable(listing.relative(name)) for name in list(files)[:5])
        raise UserError(
            f"data.files={data.files!r} matches no file of {data.uri} (there: {examples or 'none'}); expected a "
            "pattern such as train-*.parquet, or sub/**/*.jpg"
        )
    return files


def is_hidden(relative: str) -> bool:
    """Whether a part of a path begins with a dot, or is a folder of an operating system."""
    parts = [part for part in relative.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in parts)


def matches(relative: str, pattern: str) -> bool:
    """Whether a pattern without a slash fits a file's own name, or one with a slash its whole path."""
    if "/" not in pattern:
        return fnmatchcase(posixpath.basename(relative), pattern)
    return re.match(glob_translate(pattern.removeprefix("./")), relative) is not None


def select_pattern(
    files: Files, listing: Listing, data: DataConfig, endings: Sequence[str], tally: LeftOutCounts
) -> Files:
    """The files of the pattern `data.files`; those that only accompany samples have any name."""
    if not data.files:
        return files
    matching = Files()
    for name, info in files.items():
        if name.lower().endswith(tuple(endings)) and not matches(listing.relative(name), data.files):
            tally.add("file", f"not of data.files={data.files}", listing.relative(name))
        else:
            matching[name] = info
    return matching


def select_split(files: Files, listing: Listing, data: DataConfig, by_file_name: bool, tally: LeftOutCounts) -> Files:
    """The files of `data.split`.

    Args:
        by_file_name: whether a file's own name may name a split, and not only its folders.

    Raises:
        UserError: there are several splits and none is chosen, or the chosen one does not exist.
    """
    splits = {name: split_of(listing.relative(name), by_file_name) for name in files}
    available = sorted({split for split in splits.values() if split})
    chosen = _SPLIT_OF.get(data.split.lower(), data.split)
    if not chosen and (len(available) > 1 or (available and available != ["train"] and "" in splits.values())):
        raise UserError(
            f"data.uri={data.uri!r} holds {_counted(splits.values())}; set data.split to one of them, or "
            "data.split=all to read every file"
        )
    if not chosen or chosen == "all":
        return files
    if chosen not in available:
        raise UserError(
            f"data.split={data.split!r} is not there: data.uri={data.uri!r} holds {_counted(splits.values())}; name "
            "one of them, or use data.files="
        )
    for name, split in splits.items():
        if split != chosen:
            tally.add("file", f"of split {split}" if split else "of no split", listing.relative(name))
    return {name: info for name, info in files.items() if splits[name] == chosen}


def split_of(relative: str, by_file_name: bool = True) -> str:
    """The split that a path names: by a folder (`test/`, `split=test/`, `val2017/`), else in the file's name."""
    *folders, name = relative.lower().split("/")
    for folder in folders:
        if match := _SPLIT_FOLDER.fullmatch(folder.rpartition("=")[2]):
            return _SPLIT_OF[match[1]]
    words = re.split(r"[^a-z]+", name) if by_file_name else []
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), "")


def _counted(splits: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for split in splits:
        counts[split] = counts.get(split, 0) + 1
    named = [f"split {split} ({_plural(n)})" for split, n in sorted(counts.items()) if split]
    return ", ".join([*named, *([f"{_plural(counts[''])} of no split"] if "" in counts else [])])


def _plural(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def count_endings(files: Iterable[str], listing: Listing, tally: LeftOutCounts) -> None:
    """Leaves out files that no format reads, by their endings."""
    for name in files:
        base = posixpath.basename(name).lower()
        ending = base[base.rindex(".") :] if "." in base.lstrip(".") else ""
        reason = f"ending {ending[:20]}" if ending else "without an ending"
        tally.add("file", reason + REMEDIES.get(ending, ""), listing.relative(name))


def hive_columns(relative: str) -> dict[str, str | None]:
    """The columns that folders name: `label=cat/0.parquet` -> {label: cat}."""
    return dict(_hive(relative.split("/")[:-1]))


def _hive(folders: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    for folder in folders:
        key, equals, value = folder.partition("=")
        if key and equals:
            yield key, None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
