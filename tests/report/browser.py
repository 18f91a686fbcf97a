"""A real browser: what it draws of a page that lies in a folder, and what its console said."""

import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
SCHEMES = {"dark": 0, "light": 1}


def visit(page: Path, width: int, scheme: str = "light", height: int = 2600) -> tuple[Image.Image, list[str]]:
    """A screenshot of a page, and the lines of the browser's console. The page's folder is left as it is."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:  # its processes end after it
        shot = Path(own) / "shot.png"
        run = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={own}/profile", f"--window-size={width},{height}",
             f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", f"--screenshot={shot}", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return Image.open(io.BytesIO(shot.read_bytes())), [s for s in run.stderr.splitlines() if "CONSOLE" in s]


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    """Every colour in it."""
    found = image.convert("RGB").getcolors(1 << 24) or []
    return {pixel for _, pixel in found if isinstance(pixel, tuple)}
