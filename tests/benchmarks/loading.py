"""How long a browser takes to load a report of 200 pictures: `python -m tests.benchmarks.loading`.

Chromium itself says it, as the load event's end in its navigation timing, over its DevTools protocol; the median of
five loads by a fresh browser of the page of one file, of the light page, and of a concept's page beside it.
"""

import asyncio
import json
import random
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import aiohttp

from concept_trak.report.page import Page, Ranking, Thumb
from concept_trak.report.render import render, render_concept
from tests.report import pages
from tests.report.browser import CHROMIUM, FLAGS

PICTURES, SIDE, LOADS = 200, 192, 5
TIMING = "JSON.stringify(performance.getEntriesByType('navigation')[0])"


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


async def load(page: Path) -> float:
    """Milliseconds from the start of the navigation to the end of the load event, in a browser of its own."""
    assert CHROMIUM is not None, "needs the program `chromium` on PATH"
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await opened(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    (tab,) = [t for t in await answer.json() if t["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as ws:
                    return await timed(ws, page)
        finally:
            browser.terminate()
            browser.wait()


async def opened(file: Path) -> str:
    while not file.exists() or not file.read_text().strip():
        await asyncio.sleep(0.05)
    return file.read_text().split()[0]


async def timed(ws: aiohttp.ClientWebSocketResponse, page: Path) -> float:
    await ws.send_json({"id": 1, "method": "Page.enable"})
    await ws.send_json({"id": 2, "method": "Page.navigate", "params": {"url": page.as_uri()}})
    async for message in ws:
        told = json.loads(message.data)
        if told.get("method") == "Page.loadEventFired":
            await asyncio.sleep(0.2)  # the event's own end is written after it was fired
            await ws.send_json({"id": 3, "method": "Runtime.evaluate", "params": {"expression": TIMING}})
        if told.get("id") == 3:
            return json.loads(told["result"]["result"]["value"])["loadEventEnd"]
    raise AssertionError("the browser went away")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for what, page in write(Path(folder)).items():
            times = [asyncio.run(load(page)) for _ in range(LOADS)]
            size = page.stat().st_size / 1e6
            print(f"{what:<14} {size:6.2f} MB  median {median(times):6.0f} ms  all {[round(t) for t in times]}")


if __name__ == "__main__":
    main()
