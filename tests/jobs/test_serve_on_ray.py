"""A server of several processes on Ray Serve, started by the command line: a process is killed during a question."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from concept_trak.attribution.concept import Concept
from concept_trak.audit.finished_audit import open_audit
from concept_trak.audit.questions import Questions
from concept_trak.config import WorkerSettings
from serving.listen import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]


def call(url: str, body: bytes | None = None, token: str = TOKEN) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def process_of(server: subprocess.Popen[str], name: str) -> psutil.Process:
    """The process of a replica, by the title that Ray gives it."""
    running = psutil.Process(server.pid).children(recursive=True)
    (process,) = [p for p in running if p.cmdline()[:1] == [f"ray::ServeReplica:concept-trak:{name}"]]
    return process


def until(state: Callable[[], Any], reached: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + 200
    while not reached(now := state()):
        assert time.monotonic() < end, now
        time.sleep(0.05)
    return now


def test_a_process_killed_during_a_question_is_replaced_and_the_answer_is_the_same(baseline, tmp_path):
    command = [sys.executable, "-m", "jobs.serve", f"store={baseline.store}", f"audit={baseline.audit}",
               f"questions={tmp_path}/questions", "replicas=2", "port=0"]  # fmt: skip
    variables = {**os.environ, "CONCEPT_TRAK_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("listening  http://127.0.0.1:"), (tmp_path / "log").read_text()
            url = line.split()[1]
            assert call(f"{url}/", token="wrong") == (401, b"")
            assert call(f"{url}/pictures", b"x" * 10_000_001)[0] == 413
            share = process_of(server, "share-1")
            share.suspend()
            question = {"prompt": "a red circle", "without": "a circle", "samples": 2, "top": 7}
            key = json.loads(call(f"{url}/questions", json.dumps(question).encode())[1])["id"]

            def state() -> dict[str, Any]:
                return json.loads(call(f"{url}/questions/{key}")[1])

            until(state, lambda now: now["state"] != "queued" and now["step"] == 4)
            share.kill()
            done = until(state, lambda now: now["state"] in ("done", "failed"))
            assert done["state"] == "done", done["error"]
            assert process_of(server, "share-1").pid != share.pid
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 143
    concept = Concept("question", prompt="a red circle", without_prompt="a circle", samples=2)
    results = open_audit(str(baseline.store), baseline.audit)
    alone = Questions(results, worker=WorkerSettings(), keep=ServeConfig().keep).ask([concept], top=7).table.to_pylist()
    columns = ("method", "form", "end", "rank", "sample_id", "score", "low", "high", "rank_low", "rank_high")
    rows = done["result"]["rows"]
    assert [[row[c] for c in columns] for row in rows] == [[row[c] for c in columns] for row in alone]
