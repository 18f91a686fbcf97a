"""An audit's folder. Files are put there if absent, so that two drivers on one audit leave one set of files."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from concept_trak import UserError
from concept_trak.store.identity import encode_json
from concept_trak.store.store import Store
from concept_trak.store.tables import to_parquet


class Audit:
    """One audit on a store: the folder audits/<id>/."""

    def __init__(self, store: Store, audit_id: str):
        if not re.fullmatch(r"\w[\w.-]*", audit_id) or audit_id in ("latest.json", "index.json", "index.html"):
            raise UserError(f"audit={audit_id!r}: expected letters, digits, '.', '_' or '-', e.g. audit=pikachu-2.")
        self.store, self.id = store, audit_id

    def name(self, relative: str) -> str:
        """The name of a file of this audit, relative to the store."""
        return f"audits/{self.id}/{relative}"


def write_table(audit: Audit, relative: str, table: pa.Table) -> bool:
    """Put a table as Parquet if absent; False if a file with other bytes exists, which is kept."""
    return write_bytes(audit, relative, to_parquet(table))


def write_json(audit: Audit, relative: str, obj: Any) -> bool:
    """Put JSON if absent; False if a file with other bytes exists, which is kept."""
    return write_bytes(audit, relative, encode_json(obj))


def write_bytes(audit: Audit, relative: str, data: bytes) -> bool:
    """Put a file if absent; False if a file with other bytes exists (another driver's), which is kept."""
    return audit.store.create(audit.name(relative), data)


@dataclass(frozen=True)
class ListedFile:
    """A file of an audit as its manifest lists it: its name below the audit, its bytes and their sha256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> "ListedFile":
        """A file with these bytes."""
        return cls(name, len(data), hashlib.sha256(data).hexdigest())

    @property
    def entry(self) -> dict[str, Any]:
        return {"size": self.size, "sha256": self.sha256}


def write_listed(audit: Audit, relative: str, content: bytes | pa.Table) -> ListedFile:
    """Put a file, or a table as Parquet, if absent; what is there afterwards, which may be another driver's."""
    data = to_parquet(content) if isinstance(content, pa.Table) else content
    if not write_bytes(audit, relative, data):
        data = audit.store.read(audit.name(relative))
    return ListedFile.of(relative, data)


def listed_file(audit: Audit, file: str | ListedFile) -> ListedFile:
    """A file with its size and digest, which are read from storage where only its name is known.

    Raises:
        UserError: it does not exist.
    """
    if isinstance(file, ListedFile):
        return file
    try:
        return ListedFile.of(file, audit.store.read(audit.name(file)))
    except FileNotFoundError as error:
        raise UserError(
            f"audit {audit.id} cannot be finished: {file} does not exist. Expected every listed file; run the same"
            " command again to write it."
        ) from error
