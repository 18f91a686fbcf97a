"""Text from users: its encoding, limits of its length and of the depth of JSON, and its way to a terminal."""

import codecs
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from concept_trak import UserError
from concept_trak.store.yaml_text import parse_yaml

MOST_CHARACTERS = 10_000
"""Of one caption, label or id: a longer value is a damaged file or an attack, and fills every page and log."""
MOST_BYTES = 1 << 20
"""Of a text file or a JSON member."""
MOST_LIST_BYTES = 64 << 20
"""Of a file with the list of a setting."""
MOST_DEPTH = 32
"""Lists and objects inside one another in JSON."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_JOINED = "[\u0590-\ud7ff\uf900-\ufffd\U00010000-\U000dffff]"
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
    f"|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})"
)


def decode_text(data: bytes, name: str, most: int = MOST_BYTES) -> str:
    """The text of a file: UTF-8, or what its byte order mark names; line ends as \\n, no white space around it.

    Raises:
        UserError: it is in another encoding, or too long; the message names the file.
    """
    if len(data) > most:
        raise UserError(f"{name} has more than {most} bytes of text, which is no caption; shorten it")
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def parse_json(text: str | bytes, name: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: it is not JSON, too long, or nested too deep; the message names the file.
    """
    if isinstance(text, bytes):
        text = decode_text(text, name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{name} is no readable JSON ({what}); write it again") from None
    if json_depth(value) > MOST_DEPTH:
        raise UserError(f"{name} is JSON nested deeper than {MOST_DEPTH}; write it flatter")
    return value


def read_list(path: str, key: str) -> list[Any]:
    """The list in a local file: JSON if the name ends with .json, else YAML.

    It is read by libyaml or `json`, because a configuration of Hydra takes some 3 ms for each mapping of a list.

    Args:
        path: the file; `~` is the home folder.
        key: the setting that names it, for messages.

    Raises:
        UserError: the file cannot be read, or does not hold a list.
    """
    where = f"{key}={path!r}"
    try:
        content = Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{where} cannot be read ({one_line(error)}); expected a list, or a file with one") from None
    text = decode_text(content, where, MOST_LIST_BYTES)
    value = parse_json(text, where) if path.lower().endswith(".json") else _parse_yaml(text, where)
    if not isinstance(value, list):
        raise UserError(f"{where} holds no list; expected the list that the setting would have, as JSON or YAML")
    return value


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return parse_yaml(text, aliases=True)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError for a date such as 2026-99-99
        raise UserError(f"{name} is no readable YAML ({one_line(error)}); write it again") from None


def json_depth(value: Any) -> int:
    """The depth of nested lists and objects, counted without recursion."""
    levels, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        levels += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return levels


def text_problem(column: str, value: Any) -> str:
    """The reason why a value, or one inside a list, cannot be kept as text; empty if it can."""
    if isinstance(value, list):
        return next((problem for inner in value if (problem := text_problem(column, inner))), "")
    if not isinstance(value, str):
        return ""
    if len(value) > MOST_CHARACTERS:
        return f"{column} has {len(value)} characters; expected at most {MOST_CHARACTERS}"
    return "" if encodable(value) else f"{column} is not Unicode text, so no file can store it; write it again as UTF-8"


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: object, most: int = 300) -> str:
    """An error's or a value's text for a message: one line, control characters escaped, not too long."""
    line = escaped(" ".join(str(text).split()))
    return line if len(line) <= most else f"{line[:most]}..."


def escaped(text: str, keep: str = "") -> str:
    """A text for a terminal, a page or a log: what cannot be seen, or moves what can, is written as an escape.

    These are control characters (C0 and C1), marks that turn the direction of text, characters of no width, other ends
    of lines, and halves of surrogate pairs. A joiner stays in emoji and between letters of scripts that join.

    Args:
        text: from a data set, a file system, or an error.
        keep: control characters that stay, such as the newlines of a text of several lines.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


def printable(name: str) -> str:
    """A file's name as UTF-8 text: bytes that are not UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


BAR = "\n\t\r"  # a progress bar goes back to the beginning of its line


class EscapedOutput:
    """A stream that escapes control characters, so that no text of data or of storage acts on a terminal or in a log.

    Args:
        stream: where the text goes, a text stream.
        keep: control characters that pass.
    """

    def __init__(self, stream: Any, keep: str = "\n\t") -> None:
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
