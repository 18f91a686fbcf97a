"""Ten thousand requests at once, over HTTP: each is accepted or told when to come again, and none is lost."""

import asyncio
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUESTS, WAVES, LEAKED = 10_000, (2_000, 2_000, 2_000), 3_000
"""Requests at once; before them waves that are quicker, and bytes that a request may leave in memory on average.

The large wave is the last one: what it leaves free would hide what later ones keep."""
SERVER = """
import sys
from serving.application import application
from serving.listen import bound, run
from tests.serving.stand_in import answering
with bound("127.0.0.1", 0) as sock:
    app = application(answering(sys.argv[1], most=32))
    run(app, sock, lambda: print(sock.getsockname()[1], flush=True))
"""


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[int, int]]:
    """The process and the port of a server with a stand-in for the model."""
    own, (soft, hard) = REQUESTS + 1000, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < own:
        pytest.skip(f"needs {own} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, own), hard))
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.returncode == 0


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def ask_all(client: aiohttp.ClientSession, wave: int, requests: int) -> tuple[Counter[int], list[str]]:
    """The statuses of all requests, and the addresses of the questions that were accepted."""

    async def ask(i: int) -> tuple[int, str]:
        async with client.post("/questions", json={"prompt": f"{wave} {i}"}) as response:
            answer = await response.json()
            assert response.status != 429 or int(response.headers["Retry-After"]) >= 1, answer
            return response.status, answer.get("url", "")

    answers = await asyncio.gather(*(ask(i) for i in range(requests)))
    return Counter(status for status, _ in answers), [url for status, url in answers if status == 202]


async def end_all(client: aiohttp.ClientSession, urls: list[str]) -> Counter[str]:
    states = Counter[str]()
    for url in urls:
        while (state := (await (await client.get(url)).json())["state"]) in ("queued", "running"):
            await asyncio.sleep(0.02)
        states[state] += 1
    return states


@pytest.mark.soak
def test_each_of_ten_thousand_requests_has_an_answer_and_memory_is_flat(server):
    """Every question waits in memory or on storage, and the queue is bounded, so another wave takes nothing more."""
    pid, port = server

    async def talk() -> list[int]:
        sizes, everything = list[int](), aiohttp.ClientTimeout(total=600)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=everything) as client:
            for wave, requests in enumerate((*WAVES, REQUESTS)):
                statuses, accepted = await ask_all(client, wave, requests)
                assert statuses[202] >= 32
                assert statuses[202] + statuses[429] == requests, statuses
                assert await end_all(client, accepted) == Counter(done=statuses[202])
                assert (await client.get("/health")).status == 200
                sizes.append(resident(pid))
                print(wave, dict(statuses), f"{sizes[-1] / 1e6:.0f} MB")
        await asyncio.sleep(0.5)  # sockets are closed in the turns of the loop that follow
        return sizes

    _, *sizes, _ = asyncio.run(talk())
    assert sizes[-1] - sizes[0] < LEAKED * sum(WAVES[2:])
