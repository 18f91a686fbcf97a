"""The members of a tar file, read as a stream and never unpacked onto a disk."""

import tarfile
from collections.abc import Iterator
from typing import Any

from concept_trak import UserError
from concept_trak.data.text import one_line

MOST_MEMBER_BYTES = 256 << 20
"""The most bytes of a member; a larger one is not a training image and would fill the memory."""


def tar_members(file: Any, name: str) -> Iterator[tarfile.TarInfo]:
    """Every member except folders, from the file's position to its end, one in memory at a time.

    The file may be several concatenated archives (`cat a.tar b.tar`); the zeros at the end of each are skipped.

    Raises:
        UserError: the file is not a tar, is cut off, or has other bytes after its end.
    """
    start = file.tell()
    while True:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                    if not member.isdir():
                        yield member
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            where = f" behind the end mark, at byte {start}" if start else ""
            file.seek(start)
            if file.read(2) == b"\x1f\x8b":
                raise UserError(f"{name} is compressed, so no shard could begin inside; unpack it (gunzip)") from None
            raise UserError(
                f"{name} is not a readable tar file{where} ({one_line(error)}); write it again, or remove it"
            ) from None
        start = _skip_end_mark(file, name, end)
        if start is None:
            return
        file.seek(start)


def _skip_end_mark(file: Any, name: str, place: int) -> int | None:
    """The position of the next archive after the end of one; None at the end of the file.

    Raises:
        UserError: there is no end mark: tarfile takes a damaged header, and the end of a cut file, for the end.
    """
    file.seek(place)
    block, zeros = file.read(tarfile.BLOCKSIZE), 0
    while len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0"):
        zeros += 1
        block = file.read(tarfile.BLOCKSIZE)
    if not zeros:
        what = "is damaged" if block else "is cut off: it has no end mark"
        raise UserError(f"{name} {what} at byte {place}; write it again, or remove it from data.uri")
    return place + zeros * tarfile.BLOCKSIZE if block.strip(b"\0") else None


def reason_unsafe(member: tarfile.TarInfo) -> str:
    """The reason why a member is not read; empty if it is read."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"the member {member.name!r} names a place outside of the tar; write the tar from relative names"
    if not member.isreg() or member.issparse():
        return f"the member {member.name!r} is a link or a special file; write the tar with --dereference"
    if member.size > MOST_MEMBER_BYTES:
        return f"the member {member.name!r} has {member.size} bytes; expected at most {MOST_MEMBER_BYTES}"
    return ""


def split_key(name: str) -> tuple[str, str]:
    """a/b.seg.png -> (a/b, seg.png): WebDataset ends the name of a sample at the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()
