"""The file system of an address, with the endpoint and credentials that the environment has now."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

PREFIXES = ("AWS_", "AZURE_", "FSSPEC_", "GCSFS_", "GOOGLE_", "HF_")  # of variables that name endpoints and credentials
LISTERS = 16
SMALL_FOLDER = 250
"""Names of a folder below which a request for it alone does not pay, where there are many folders."""
_environments: dict[type[AbstractFileSystem], dict[str, str]] = {}


def open_file_system(address: str) -> tuple[Any, str]:
    """The file system of an address and the path in it.

    fsspec keeps the file system that it opens first for a scheme, with its endpoint and credentials. Here they are read
    again when the environment has changed, so that a key that is corrected in a notebook takes effect.

    Args:
        address: a path or a URL that fsspec knows; listings of it are not cached.

    Raises:
        ValueError: fsspec does not know the scheme.
        ImportError: the package of the scheme is not installed.
    """
    kind = fsspec.get_filesystem_class(fsspec.core.split_protocol(address.rpartition("::")[2])[0])
    environment = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
    if _environments.setdefault(kind, environment) != environment:
        kind.clear_instance_cache()
        _environments[kind] = environment
    return fsspec.core.url_to_fs(address, use_listings_cache=False)  # noqa: TID251  the only one


def find_files(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    """Every file below an address, in the order of names, with the storage's information about each.

    S3 lists 1,000 names with a request and only then the next ones. So its folders at the top are listed side by side,
    unless most of them are small: then one listing of everything takes fewer requests.

    Args:
        fs: the file system.
        path: a folder in it.

    Raises:
        FileNotFoundError: there is no such folder, where the file system says so.
    """
    if "s3" not in fs.protocol:
        return fs.find(path, detail=True)
    top = fs.ls(path, detail=True)
    folders = [entry["name"] for entry in top if entry["type"] == "directory"]
    entries = {entry["name"]: entry for entry in top if entry["type"] != "directory"}
    with ThreadPoolExecutor(LISTERS) as listers:
        listings = list(listers.map(lambda folder: fs.find(folder, detail=True), folders[:LISTERS]))
        if len(folders) > LISTERS and sum(map(len, listings)) < LISTERS * SMALL_FOLDER:
            return fs.find(path, detail=True)
        listings += listers.map(lambda folder: fs.find(folder, detail=True), folders[LISTERS:])
    return dict(sorted({name: entry for listing in (entries, *listings) for name, entry in listing.items()}.items()))
