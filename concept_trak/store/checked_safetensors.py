"""What a safetensors file says of itself before its numbers."""

import json
from typing import Any


def header(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and its length in bytes.

    Raises:
        ValueError: it has none.
    """
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), size
