"""How long a browser takes to load a report of 200 pictures: `python -m tests.benchmarks.loading`.

Chromium itself says it, as the load event's end in its navigation timing, over its DevTools protocol; the median of
five loads by a fresh browser of the page of one file, of the light page, and of a concept's page beside it. Beside it
the processor time of the page's own thread, which does not depend on what else the machine does.
"""

import asyncio
import json
import random
import subprocess
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from concept_trak.report.audit_page import Page, Ranking, Thumb
from concept_trak.report.render import render, render_concept
from tests.report import pages
from tests.report.browser import CHROMIUM, FLAGS

PICTURES, SIDE, LOADS = 200, 192, 5
PATIENCE = 60
"""Seconds a load may take, start of the browser included, before it is given up with a word."""
NUMBERS = count(1)
# The event's own end is written after it was fired; 0 until then, and on the page that the browser opened with.
ENDED = "location.href == {url} ? performance.getEntriesByType('navigation')[0].loadEventEnd : 0"


def with_pictures() -> Page:
    """One concept whose one ranking shows 200 drawings, each of 192 pixels."""
    page = pages.page(pages.CONCEPTS[:1])
    ranking = page.sections[0].rankings[0]
    thumbs = tuple(replace(t, png=drawn) for t, drawn in zip(many(ranking), drawings(), strict=True))
    shown = replace(ranking, top=thumbs[: PICTURES // 2], bottom=thumbs[PICTURES // 2 :])
    return replace(page, sections=(replace(page.sections[0], rankings=(shown,), pictures=()),))


def many(ranking: Ranking) -> list[Thumb]:
    return [replace(ranking.top[i % len(ranking.top)], sample_id=f"{i}", rank=i + 1) for i in range(PICTURES)]


def drawings() -> list[bytes]:
    rng = random.Random(0)
    kinds = [(shape, colour) for shape in pages.SHAPES for colour in pages.PAINT]
    return [pages.draw(*kinds[i % len(kinds)], rng, SIDE) for i in range(PICTURES)]


def write(folder: Path) -> dict[str, Path]:
    """The three pages by what they are."""
    page, beside = with_pictures(), folder / "light/report"
    (beside / "thumbnails").mkdir(parents=True)
    ranking = page.sections[0].rankings[0]

    def as_file(thumb: Thumb) -> Thumb:
        (beside / f"thumbnails/{thumb.sample_id}.png").write_bytes(thumb.png)
        return replace(thumb, png=b"", file=f"thumbnails/{thumb.sample_id}.png")

    light = replace(ranking, top=tuple(map(as_file, ranking.top)), bottom=tuple(map(as_file, ranking.bottom)))
    folded = replace(page, files=True, sections=(replace(page.sections[0], rankings=(light,)),))
    files = {"one file": folder / "one.html", "light page": folder / "light/report.html"}
    files["concept page"] = beside / f"{page.sections[0].name}.html"
    for file, text in zip(
        files.values(), (render(page), render(folded), render_concept(folded, folded.sections[0])), strict=True
    ):
        file.write_text(text, encoding="utf-8")
    return files


def load(page: Path) -> tuple[float, float]:
    """In a browser of its own: milliseconds from the start of the navigation to the end of the load event, and of
    processor time of the page's thread until a moment later."""
    assert CHROMIUM is not None, "needs the program `chromium` on PATH"
    # What the browser still writes there while it ends is of no interest.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return asyncio.run(asyncio.wait_for(in_tab(Path(profile), page), PATIENCE))
        except TimeoutError:
            late = f"{page.name}: the browser did not say within {PATIENCE} s that the page is loaded"
            raise SystemExit(f"{late}; end what else this machine does, and run this again") from None
        finally:
            end(browser)


def end(browser: subprocess.Popen[bytes]) -> None:
    browser.terminate()
    try:
        browser.wait(10)
    except subprocess.TimeoutExpired:
        browser.kill()
        browser.wait()


async def in_tab(profile: Path, page: Path) -> tuple[float, float]:
    """`timed` in the one tab of the browser that has just been started with a profile."""
    port = await opened(profile / "DevToolsActivePort")
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            (tab,) = [t for t in await answer.json() if t["type"] == "page"]
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as ws:
            return await timed(ws, page)


async def opened(file: Path) -> str:
    while not file.exists() or not file.read_text().strip():
        await asyncio.sleep(0.05)
    return file.read_text().split()[0]


async def timed(ws: aiohttp.ClientWebSocketResponse, page: Path) -> tuple[float, float]:
    """Every answer is waited for, and the page asked whether it is loaded: it has a process of its own, and an event of
    it is not heard where it comes before that process has been told to send events."""
    await ask(ws, "Performance.enable", timeDomain="threadTicks")
    gone = await ask(ws, "Page.navigate", url=page.as_uri())
    assert "errorText" not in gone, f"{page}: {gone['errorText']}"
    while not (ended := await evaluated(ws, ENDED.format(url=json.dumps(page.as_uri())))):
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)  # the first pictures are painted after it
    told = await ask(ws, "Performance.getMetrics")
    spent = {metric["name"]: metric["value"] for metric in told["metrics"]}
    return ended, 1000 * spent["TaskDuration"]


async def evaluated(ws: aiohttp.ClientWebSocketResponse, expression: str) -> float:
    return (await ask(ws, "Runtime.evaluate", expression=expression))["result"]["value"]


async def ask(ws: aiohttp.ClientWebSocketResponse, method: str, **params: str) -> dict[str, Any]:
    """The browser's answer to one command; what else it says before is passed over."""
    await ws.send_json({"id": (number := next(NUMBERS)), "method": method, "params": params})
    async for message in ws:
        told = json.loads(message.data)
        if told.get("id") == number:
            assert "result" in told, f"{method}: {told['error']['message']}"
            return told["result"]
    raise AssertionError("the browser went away")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for what, page in write(Path(folder)).items():
            times, spent = zip(*(load(page) for _ in range(LOADS)), strict=True)
            size, said = (
                page.stat().st_size / 1e6,
                f"median {median(times):6.0f} ms, of the thread {median(spent):4.0f}",
            )
            print(f"{what:<14} {size:6.2f} MB  {said}  all {[round(t) for t in times]}", flush=True)


if __name__ == "__main__":
    main()
