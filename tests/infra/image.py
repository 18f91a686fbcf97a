"""The Dockerfile as its instructions, with continued lines joined."""

import re
from pathlib import Path

from tests.infra.manifests import ROOT

DOCKERFILE: Path = ROOT / "infra/Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, its text), comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    parts = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(word, text.strip()) for word, _, text in parts]


def texts(word: str) -> list[str]:
    return [text for name, text in instructions() if name == word]
