"""Training sets that are encoded already: safetensors files of latents and embeddings, n samples each.

    latents              [n, c, h, w]   x_0 as the network denoises it: the VAE's latents, shifted and scaled; of clips
                                        [n, c, f, h, w]
    condition.<name>     [n, ...]       each part of the model's condition: text, and pooled where there is one
    metadata `columns`   JSON, {column: n values}: ids, captions and labels; a caption may be missing here

Only the bytes of a shard's rows are read, and no picture or text is encoded again.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.files import Files, Listing, open_planned, path_below, version
from concept_trak.data.format import (
    Findings,
    Format,
    Precomputed,
    RowImage,
    SourceRow,
    known_columns,
    require_columns,
)
from concept_trak.data.inventory import LeftOutCounts
from concept_trak.data.shard import UNKNOWN, Shard, Source
from concept_trak.data.text import one_line

AT_ONCE = 16  # rows read together
MOST_HEADER_BYTES = 100_000_000  # as the safetensors library has it
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8), **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2), **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}  # fmt: skip
CONDITION = "condition."


class _Header(NamedTuple):
    tensors: dict[str, dict[str, Any]]
    columns: dict[str, list[Any]]
    start: int

    @property
    def rows(self) -> int:
        return self.tensors["latents"]["shape"][0]


def write_latents(
    path: str | Path, latents: Tensor, condition: Mapping[str, Tensor], columns: Mapping[str, Sequence[Any]]
) -> None:
    """A file of this format.

    Args:
        path: where it is written.
        latents: x_0, [n, c, h, w], or of clips [n, c, f, h, w].
        condition: each part of the model's condition, [n, ...], by its name.
        columns: n values each: ids, captions, labels.
    """
    tensors = {"latents": latents, **{f"{CONDITION}{name}": value for name, value in condition.items()}}
    lists = {name: list(values) for name, values in columns.items()}
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, {"columns": json.dumps(lists)})


def _sources(listing: Listing, files: Files, data: DataConfig, tally: LeftOutCounts) -> list[Source]:
    """Every file, by name."""
    return [
        Source(uri=listing.fs.unstrip_protocol(name), version=version(info), rows=UNKNOWN)
        for name, info in files.items()
    ]


def _is_read(tensor: str) -> bool:
    return tensor == "latents" or tensor.startswith(CONDITION)


def _header(file: Any, name: str) -> _Header:
    """The tensors and columns that a file declares.

    Raises:
        UserError: it is not a file of this format; the message names what is missing.
    """
    try:
        size = int.from_bytes(file.read(8), "little")
        if size > MOST_HEADER_BYTES:
            raise UserError(f"its header would have {size} bytes")
        tensors = json.loads(file.read(size))
        columns = json.loads(tensors.pop("__metadata__", {}).get("columns", "{}"))
        header = _Header(tensors, columns, 8 + size)
        lengths = {n: _length(t) for n, t in tensors.items() if _is_read(n)}
        end = 8 + size + max((t["data_offsets"][1] for n, t in tensors.items() if _is_read(n)), default=0)
        if end > file.seek(0, io.SEEK_END):
            raise UserError("it is cut off")
        lengths |= {n: len(values) for n, values in columns.items()}
        wrong = [n for n, length in lengths.items() if length != header.rows]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{name} is no safetensors file with `latents` [n, c, h, w] ({type(error).__name__}: {one_line(error)}); "
            "write it with concept_trak.data.latents.write_latents"
        ) from None
    if wrong or not any(n.startswith(CONDITION) for n in tensors) or len(tensors["latents"]["shape"]) not in (4, 5):
        what = (
            f"{wrong[0]} has {lengths[wrong[0]]} rows, not {header.rows}" if wrong else "no condition, or a wrong shape"
        )
        raise UserError(
            f"{name}: {what}; expected latents [n, c, h, w] or [n, c, f, h, w], and condition.<name> [n, ...]"
        )
    return header


def _length(tensor: dict[str, Any]) -> int:
    """The n of a tensor [n, ...] whose bytes are as many as its shape and type say.

    Raises:
        ValueError: they are not.
        KeyError: an unknown type.
    """
    begin, end = tensor["data_offsets"]
    if begin < 0 or min(tensor["shape"]) < 0 or end - begin != math.prod(tensor["shape"]) * ITEM_BYTES[tensor["dtype"]]:
        raise ValueError(f"{tensor['shape']} of {tensor['dtype']} do not take {end - begin} bytes")
    return tensor["shape"][0]


def _rows(source: Source, data: DataConfig, findings: Findings) -> Iterator[SourceRow]:
    """The rows of a file; the named columns are there, but captions may be missing unless the settings rename them."""
    prefix, columns = path_below(source.uri, data.uri) or "rows", known_columns(data)
    with open_planned(source.uri, source.version) as file:
        header = _header(file, source.uri)
    default = (DataConfig().image_column, DataConfig().caption_column)

    def optional(key: str, column: str) -> bool:
        return column in default and key != "data.label_columns"

    findings.unread += require_columns(data, header.columns, f"no column of {source.uri}", optional)
    for tensor in header.tensors:
        if not _is_read(tensor):
            findings.left_out.add("tensor", f"beside latents and {CONDITION}<name>", tensor)
    for number in range(header.rows):
        values = {c: header.columns[c][number] if c in header.columns else None for c in columns}
        yield SourceRow(number, f"{prefix}:{number}", values)


def _images(shard: Shard, data: DataConfig) -> Iterator[RowImage]:
    """The latent and the condition of every row of a shard."""
    with open_planned(shard.source, shard.version) as file:
        header, end = _header(file, shard.source), shard.first_row + shard.rows
        for first in range(shard.first_row, end, AT_ONCE):
            count = min(AT_ONCE, end - first)
            tensors = _tensors(file, header, first, count)
            for i in range(count):
                condition = {n.removeprefix(CONDITION): t[i] for n, t in tensors.items() if n != "latents"}
                yield RowImage(Precomputed(tensors["latents"][i], condition))


def _tensors(file: Any, header: _Header, first: int, count: int) -> dict[str, Tensor]:
    """These rows of every tensor: their bytes under a header of their own, which the library reads."""
    own, body = {}, b""
    for name, declared in header.tensors.items():
        if _is_read(name):
            begin, end = declared["data_offsets"]
            row = (end - begin) // header.rows
            file.seek(header.start + begin + first * row)
            content = file.read(count * row)
            offsets = [len(body), len(body) + len(content)]
            own[name] = {"dtype": declared["dtype"], "shape": [count, *declared["shape"][1:]], "data_offsets": offsets}
            body += content
    text = json.dumps(own).encode()
    text += b" " * (-len(text) % 8)
    return load(len(text).to_bytes(8, "little") + text + body)


def is_finite(encoded: Precomputed) -> bool:
    """Whether all numbers of the latent and of the condition are finite."""
    tensors = (encoded.latent, *encoded.condition.values())
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


FORMAT = Format((".safetensors",), _sources, _rows, _images)
