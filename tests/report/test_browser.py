"""The page in a real browser: it is drawn, and the browser has no complaint."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from concept_trak.report.render import render
from tests.report import pages

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")


def visit(html: str, folder: Path, width: int) -> tuple[Image.Image, list[str]]:
    """A screenshot of `html`, and what the browser's console said."""
    assert CHROMIUM is not None
    folder.mkdir()
    (folder / "page.html").write_text(html, encoding="utf-8")
    shot, profile = folder / "shot.png", folder / "profile"
    run = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},2600", f"--screenshot={shot}",
         (folder / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return Image.open(io.BytesIO(shot.read_bytes())), [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [420, 1400])
def test_a_browser_draws_the_page_without_a_complaint(tmp_path: Path, width: int) -> None:
    image, console = visit(render(pages.page(pages.CONCEPTS[:1])), tmp_path / "page", width)
    assert image.format == "PNG"
    assert image.width == width
    colours = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24) or []}
    assert (215, 45, 45) in colours, "the drawings are not on the page"
    assert console == [], "the browser complains"


def test_a_complaint_would_be_heard(tmp_path: Path) -> None:
    broken = render(pages.page(())).replace("<h1>", '<img alt="" src="elsewhere.png"><script>1</script><h1>')
    _, console = visit(broken, tmp_path / "page", 800)
    assert any("Content Security Policy" in line for line in console), "the console is not where the test looks for it"
