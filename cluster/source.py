"""The source code that workers run: which files are never shipped, and the comparison with the driver's code."""

import hashlib
import socket
from importlib.util import find_spec
from pathlib import Path

from cluster.executor import UserError

NEVER_SHIPPED = ("*.env", ".env.*", "*.pem", "*.key")
"""Files of a working directory that hold secrets, in the syntax of .gitignore: no node gets them."""


class StaleCode(UserError):
    """A worker would run source code that differs from the driver's."""


def source_roots(package: str) -> list[Path]:
    """The files or folders that `package` (a top-level name) would be imported from, without importing it."""
    spec = find_spec(package)
    if spec is None:
        raise UserError(f"no package {package} on {socket.gethostname()}; start from the folder that contains it")
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    source = Path(str(spec.origin))
    assert source.suffix == ".py", f"{package} is not Python source: {spec.origin}"
    return [source]


def source_digest(package: str) -> str:
    """sha256 over the relative names and the bytes of all *.py files of `package` (a top-level name)."""
    digest = hashlib.sha256()
    for root in source_roots(package):
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
        for file in files:
            source = file.read_bytes()
            name = file.relative_to(root if root.is_dir() else root.parent).as_posix()
            # Without the lengths, the same digest would result if a byte moved from the name to the content.
            digest.update(f"{len(name)} {name} {len(source)} ".encode() + source)
    return digest.hexdigest()


def require_same_source(package: str, location: str, digest: str) -> None:
    """Compare the source code that a worker would import with the driver's, before the worker imports it.

    Args:
        package: its top-level name.
        location: where the driver imports it from.
        digest: the driver's `source_digest` of it.

    Raises:
        StaleCode: they differ; the message names both places.
    """
    own = source_digest(package)
    if own != digest:
        raise StaleCode(
            f"worker on {socket.gethostname()} would run {package} from {source_location(package)} "
            f"(sha256 {own[:12]}), the driver runs {location} (sha256 {digest[:12]}): remove the installed copy or "
            "start from the same working directory"
        )


def source_location(package: str) -> str:
    """The files or folders that `package` is imported from, as text for a message."""
    return ", ".join(str(root) for root in source_roots(package))
