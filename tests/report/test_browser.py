"""The page in a real browser: it is drawn, and the browser has no complaint."""

import asyncio
from pathlib import Path

import pytest
from PIL import Image

from concept_trak.report.render import render
from tests.benchmarks import loading
from tests.report import browser, pages
from tests.report.browser import CHROMIUM, colours
from tests.serving import browsing

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")


def visit(html: str, folder: Path, width: int) -> tuple[Image.Image, list[str]]:
    """A screenshot of `html`, and what the browser's console said."""
    folder.mkdir()
    (folder / "page.html").write_text(html, encoding="utf-8")
    return browser.visit(folder / "page.html", width)


@pytest.mark.parametrize("width", [420, 1400])
def test_a_browser_draws_the_page_without_a_complaint(tmp_path: Path, width: int) -> None:
    image, console = visit(render(pages.page(pages.CONCEPTS[:1])), tmp_path / "page", width)
    assert image.format == "PNG"
    assert image.width == width
    assert (215, 45, 45) in colours(image), "the drawings are not on the page"
    assert console == [], "the browser complains"


def test_a_complaint_would_be_heard(tmp_path: Path) -> None:
    broken = render(pages.page(())).replace("<h1>", '<img alt="" src="elsewhere.png"><script>1</script><h1>')
    _, console = visit(broken, tmp_path / "page", 800)
    assert any("Content Security Policy" in line for line in console), "the console is not where the test looks for it"


@pytest.mark.soak
def test_the_page_filters_and_sorts_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(pages.page(pages.CONCEPTS[:2])), encoding="utf-8")
    items = "[...document.querySelectorAll('#concept-triangle li')].filter(i => !i.hidden)"
    captions = "[...document.querySelector('#concept-triangle ol').children].map(i => i.innerText.split('\\n').pop())"

    async def person() -> None:
        async with browsing.browser(tmp_path) as tab:
            await tab.open((tmp_path / "page.html").as_uri())
            filters = "document.querySelector('#concept-triangle .tools input')"
            assert await tab.evaluate("document.querySelectorAll('.tools:not([hidden])').length") == 2
            before = await tab.evaluate(f"{items}.length")
            other = await tab.evaluate("document.querySelectorAll('#concept-red li:not([hidden])').length")
            await tab.evaluate(f"{filters}.focus()")
            await tab.do("Input.insertText", text="red TRI")
            assert 0 < await tab.evaluate(f"{items}.length") < before
            assert await tab.evaluate(f"{items}.every(i => i.textContent.includes('a red triangle'))")
            assert await tab.evaluate("document.querySelectorAll('#concept-red li:not([hidden])').length") == other
            choose = "const s = document.querySelectorAll('#concept-triangle .tools select')[1]; s.value = 'caption';"
            await tab.evaluate(f"{filters}.value = ''; {choose} s.dispatchEvent(new Event('change'))")
            assert (ordered := await tab.evaluate(captions)) == sorted(ordered)
            for width, scheme in ((1280, "light"), (400, "dark")):
                await tab.look(f"report-{width}-{scheme}", width, scheme)
                assert await tab.evaluate("document.documentElement.scrollWidth") == width, "the page is cut off"

    asyncio.run(asyncio.wait_for(person(), 100))
    assert browsing.complaints(tmp_path) == [], "the browser complains"


@pytest.mark.soak
def test_a_page_of_200_pictures_loads_within_a_second(tmp_path: Path) -> None:
    """The best of five browsers each, since others may use this machine; `tests.benchmarks.loading` has the medians."""
    best = {what: min(loading.load(page)[0] for _ in range(5)) for what, page in loading.write(tmp_path).items()}
    assert max(best.values()) < 1000, f"milliseconds: {best}"
