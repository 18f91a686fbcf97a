"""The output of a verb: nothing from data, storage or a library reaches a terminal or a log as control characters."""

import sys
from typing import Any, TextIO

from concept_trak.data.text import escaped

BAR = "\n\t\r"  # a progress bar goes back to the beginning of its line


class EscapedOutput:
    """A stream that escapes control characters; all else is the stream's own.

    Args:
        stream: where the text goes.
        keep: control characters that pass.
    """

    def __init__(self, stream: TextIO, keep: str = "\n\t") -> None:
        self._stream, self._keep = stream, keep

    def write(self, text: str) -> int:
        self._stream.write(escaped(text, self._keep))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def escape_output() -> None:
    """Escape what this process writes to its output and its errors from now on."""
    sys.stdout, sys.stderr = EscapedOutput(sys.stdout), EscapedOutput(sys.stderr, BAR)  # type: ignore[assignment]
