"""How long a question takes: `python -m tests.benchmarks.asking [store=results] [audit=demo] [rounds=1] [threads=0]
[checkouts=.,/another/checkout]`.

Starts `jobs.serve` in a process of its own, on all cores (threads=0) or some, and asks it over HTTP: a first question,
the same prompt with another `top`, an equal question, and another prompt. Each row has the seconds that passed and the
CPU seconds of the server's process, which other programs on the machine hardly change. With several checkouts, each is
started in every round, in turn; the store is the same, and the questions of a server go to a folder of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.benchmarks.passes import table

FIRST = {"prompt": "a red triangle", "without": "a triangle", "top": 10}
QUESTIONS = {
    "first question": FIRST,
    "the same prompt, another top": FIRST | {"top": 20},
    "an equal question": FIRST,
    "another prompt": {"prompt": "a blue circle", "without": "a circle", "top": 10},
}
Seconds = dict[str, tuple[float, float]]


class Meter:
    """Measures the seconds and the CPU seconds of a process, from its start."""

    def __init__(self, pid: int) -> None:
        self._process, self._before = psutil.Process(pid), (time.monotonic(), 0.0)

    def lap(self) -> tuple[float, float]:
        """Both since the last call."""
        times = self._process.cpu_times()
        now, before = (time.monotonic(), times.user + times.system), self._before
        self._before = now
        return now[0] - before[0], now[1] - before[1]


def measure(checkout: str, store: str, audit: str, threads: int) -> Seconds:
    """Start a server, ask it every question and end it. Returns (seconds, CPU seconds) by what was done."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs.serve", f"store={store}", f"audit={audit}", "port=0"]
        server = subprocess.Popen(
            [*command, f"questions={folder}"], cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            meter, address = Meter(server.pid), _address(server)
            seconds = {"start": meter.lap()}
            for what, question in QUESTIONS.items():
                _ask(address, question)
                seconds[what] = meter.lap()
        finally:
            server.terminate()
            server.wait()
    return seconds


def _address(server: subprocess.Popen[str]) -> str:
    """What the server prints once it listens."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("listening"):
            return line.split()[-1]
    raise RuntimeError(f"the server ended with exit code {server.wait()}")


def _ask(address: str, question: dict[str, Any]) -> None:
    """Ask a question and wait for its answer."""
    url = _call(address + "/questions", json.dumps(question).encode())["url"]
    while (answer := _call(address + url))["state"] in ("queued", "running"):
        time.sleep(0.02)
    assert answer["state"] == "done", answer["error"]


def _call(url: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(url, body) as answer:
        return json.load(answer)


def main(arguments: list[str]) -> None:
    values = dict(argument.split("=", 1) for argument in arguments)
    checkouts = values.get("checkouts", ".").split(",")
    store, threads = str(Path(values.get("store", "results")).absolute()), int(values.get("threads", 0))
    rounds = [
        {checkout: measure(checkout, store, values.get("audit", "demo"), threads) for checkout in checkouts}
        for _ in range(int(values.get("rounds", 1)))
    ]
    for checkout in checkouts:
        rows = []
        for what in ("start", *QUESTIONS):
            passed, cpu = zip(*(seconds[checkout][what] for seconds in rounds), strict=True)
            rows.append({"what": what, "s": f"{median(passed):.2f}", "CPU s": f"{median(cpu):.2f}"})
        print(f"{Path(checkout).absolute()}\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
