"""The file system of an address, as the environment of now describes it."""

import os

import fsspec
from fsspec import AbstractFileSystem

PREFIXES = ("AWS_", "AZURE_", "FSSPEC_", "GCSFS_", "GOOGLE_", "HF_")  # of variables that name endpoints and credentials
_environments: dict[type[AbstractFileSystem], dict[str, str]] = {}


def open_file_system(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address and the path in it.

    fsspec returns the file system that it opened before for the same scheme, with the endpoint and the credentials of
    then. They are read again here after the environment changed: a person who mends a wrong key in a notebook is
    answered by the new one.

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
