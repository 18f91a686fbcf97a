"""Storage that fails in ways a healthy one cannot be asked to: fault injection behind real fsspec schemes."""

import os

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class LosesAnswers(MemoryFileSystem):
    """Fault injection: writes succeed, and their answers are lost on the way back."""

    protocol = "lossy"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode=mode, **kwargs)
        raise ConnectionResetError("the answer was lost")


class FailsBefore(MemoryFileSystem):
    """Fault injection: nothing is written, and the error is of no type that storage promises."""

    protocol = "dead"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        raise RuntimeError(f"no route to //user:hunter2@host for {os.environ.get('AWS_SECRET_ACCESS_KEY')}")


class Forgetful(MemoryFileSystem):
    """A store that ignores the condition of a conditional create, as some S3 servers do."""

    protocol = "forgetful"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode="overwrite", **kwargs)


def register() -> None:
    """Make the schemes known to fsspec in this process."""
    for implementation in (LosesAnswers, FailsBefore, Forgetful):
        fsspec.register_implementation(implementation.protocol, implementation, clobber=True)
