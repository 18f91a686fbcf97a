"""The command as people start it, and its page in a real browser: type, ask, wait, filter, go back."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs.world import build
from tests.report.browser import CHROMIUM
from tests.serving.browsing import browser, complaints
from tests.serving.stand_in import picture

pytestmark = [pytest.mark.soak, pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")]
ROOT = Path(__file__).resolve().parents[2]
RED = "a red triangle, not a triangle"
ANSWERED = "!!document.getElementById('answer')"
DARK = "getComputedStyle(document.body).backgroundColor == 'rgb(21, 24, 27)'"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("served")
    done = build(root / "world").audit(root / "store", model="pixels", method="[caption_trak,das]", data="few")
    assert done.code == 0
    return done.store


@pytest.fixture
def url(store) -> Iterator[str]:
    """A server as a process of its own, which must end well when it is terminated."""
    command = [sys.executable, "-m", "jobs.serve", f"store={store}", "audit=first", "port=0"]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening  http://127.0.0.1:"), (line, process.stderr)
        yield line.split()[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.communicate()[1] == ""
    finally:
        process.kill()
        process.communicate()


def test_a_question_from_the_search_box_to_pictures(url, tmp_path):
    (tmp_path / "own.png").write_bytes(picture("red", 64))

    async def person() -> None:
        async with browser(tmp_path) as tab:
            await tab.open(f"{url}/")
            await tab.type("prompt", "a red triangle")
            words = "document.getElementById('words')"
            assert await tab.evaluate(f"[...{words}.children].map(b => b.textContent)") == ["a", "red", "triangle"]
            for word, phrase in ((1, "red"), (2, "red triangle"), (2, "red")):
                await tab.evaluate(f"{words}.children[{word}].focus()")
                await tab.press("Enter", 13)
                assert await tab.evaluate("document.getElementById('minus').value") == phrase
                assert await tab.evaluate(f"document.activeElement == {words}.children[{word}]"), "the focus is lost"
            assert await tab.evaluate(f"[...{words}.children].map(b => b.ariaPressed)") == ["false", "true", "false"]
            await tab.evaluate("document.getElementById('prompt').focus()")
            await tab.press("Enter", 13)
            await tab.until(ANSWERED)
            await tab.until("document.activeElement.id == 'answer-1'")
            first = await tab.evaluate("location.href")
            assert first.startswith(f"{url}/answers/")
            assert "what a red triangle has and a triangle does not" in await tab.evaluate("document.body.innerText")
            for width, scheme in ((1280, "light"), (400, "light"), (400, "dark")):
                shot = await tab.look(f"{width}-{scheme}", width, scheme)
                assert await tab.evaluate("document.documentElement.scrollWidth") == width, "the page is cut off"
                assert await tab.evaluate(DARK) is (scheme == "dark")
                assert len(Image.open(shot).convert("RGB").getcolors(1 << 24) or []) > 100, "no picture is drawn"
            items = "[...document.querySelectorAll('#answer li')].filter(i => !i.hidden)"
            before = await tab.evaluate(f"{items}.length")
            filter, group, order = (
                f"document.querySelector('.tools {name}')"
                for name in ("input", "select", "label + label + label select")
            )
            await tab.evaluate(f"{filter}.focus()")
            await tab.do("Input.insertText", text="a red")
            assert 0 < await tab.evaluate(f"{items}.length") < before
            assert await tab.evaluate(f"{items}.every(i => i.textContent.includes('red'))")
            assert "shown" in await tab.evaluate("document.querySelector('.tools output').value")
            await tab.evaluate(f"{filter}.select()")
            await tab.press("Delete", 46)
            assert await tab.evaluate(f"{items}.length") == before
            changed = "dispatchEvent(new Event('change'))"
            assert await tab.evaluate(f"{group}.options.length") > 1
            await tab.evaluate(f"{group}.selectedIndex = 1; {group}.{changed}")
            assert await tab.evaluate(f"{items}.every(i => i.dataset.groups.includes({group}.value.split(' = ')[1]))")
            captions = (
                "[...document.querySelector('#answer ol').children].map(i => i.querySelector('.caption').textContent)"
            )
            await tab.evaluate(
                f"{group}.selectedIndex = 0; {group}.{changed}; {order}.value = 'caption'; {order}.{changed}"
            )
            assert (ordered := await tab.evaluate(captions)) == sorted(ordered)
            one_method = "document.querySelectorAll('#answer h3').length == 1"
            await tab.choose("picture", tmp_path / "own.png")
            await tab.until("document.getElementById('preview').naturalWidth == 64")
            await tab.evaluate("for (const i of document.querySelectorAll('[value=das]')) i.checked = false")
            await tab.evaluate("document.querySelector('.question').requestSubmit()")
            await tab.until(f"location.href != {first!r} && ({ANSWERED})")
            assert "in this one picture" in await tab.evaluate("document.body.innerText")
            assert await tab.evaluate("document.querySelectorAll('#answer h3').length") == 1
            await tab.evaluate("document.querySelector('[name=beside]').click()")
            await tab.evaluate("for (const name of ['prompt', 'minus']) document.getElementById(name).value = ''")
            await tab.type("prompt", "a red square")
            await tab.type("minus", "red")
            await tab.evaluate("document.querySelector('.question').requestSubmit()")
            await tab.until("document.querySelectorAll('.side').length == 2")
            for width, scheme in ((1280, "light"), (1280, "dark"), (400, "light")):
                await tab.look(f"beside-{width}-{scheme}", width, scheme)
                assert await tab.evaluate("document.documentElement.scrollWidth") == width, "the page is cut off"
            await tab.evaluate("history.back()")
            await tab.until(f"!location.search && ({ANSWERED}) && {one_method}")
            await tab.until("document.getElementById('earlier').options.length == 2")
            earlier = await tab.evaluate("[...document.getElementById('earlier').options].map(o => o.value)")
            assert [text.rpartition(" · ")[0] for text in earlier] == ["a red square, not a square", RED], earlier
            await tab.type("other", earlier[1])
            await tab.evaluate("document.querySelector('.beside').requestSubmit()")
            await tab.until("document.querySelectorAll('.side').length == 2")
            assert await tab.evaluate("location.search") == f"?beside={first.removesuffix('#answer-1')[-20:]}"
            await tab.evaluate("history.back()")
            await tab.until(f"!location.search && ({ANSWERED}) && {one_method}")
            await tab.evaluate("document.querySelector('.like').click()")
            await tab.until(f"({ANSWERED}) && document.body.innerText.includes('what the picture shows')")
            assert await tab.evaluate("document.querySelectorAll('[name=examples]').length") == 1
            await tab.evaluate("history.back()")
            await tab.until(f"location.href != {first!r} && ({ANSWERED}) && {one_method}")
            await tab.evaluate("history.back()")
            await tab.until(f"location.href == {first!r} && ({ANSWERED})")
            await tab.open(f"{url}/")
            await tab.type("minus", "blue")
            await tab.press("Enter", 13)
            await tab.until("!!document.querySelector('[role=alert]')")
            assert await tab.evaluate("document.getElementById('minus').value") == "blue"
            await tab.until("document.activeElement.role == 'alert'")

    asyncio.run(asyncio.wait_for(person(), 200))
    unexpected = [line for line in complaints(tmp_path) if "422" not in line]
    assert unexpected == [], "the browser complains"
