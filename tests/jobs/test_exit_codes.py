"""How a verb ends: an exit code, and at most one line unless it is a bug of ours."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from concept_trak import UserError
from concept_trak.audit.mapper import Stopped
from jobs.exit_codes import ended
from tests.cluster.conftest import HERE
from tests.cluster.head import ROOT

PRINTING = """
import sys
from jobs.exit_codes import ended
def verb():
    for i in range(100_000):
        print("line", i)
    return 0
sys.exit(ended(verb))
"""
MAPPING = """
import os, sys
import workers
from cluster.executor import Task
from cluster.on_ray import OnRay
from cluster.serial import Serial
from jobs.exit_codes import ended
executor = Serial() if sys.argv[1] == "serial" else OnRay(workers=2, env_vars={"PYTHONPATH": os.environ["PYTHONPATH"]})
def verb():
    for outcome in executor.map(Task(workers.Report, None), [0.1, 0.1] + [60.0] * 4):
        print("done", flush=True)
sys.exit(ended(verb))
"""


def raised(error):
    def verb():
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("mend it"), 2, "error: mend it\n"),
        (Stopped("too many rejects", 3), 3, "error: too many rejects\n"),
        (ConnectionError("away"), 4, "error: away; what is done stays done. Run the same command again.\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; what is done stays done. Run the same command again.\n"),
        (BrokenPipeError(32, "s3"), 4, "error: [Errno 32] s3; what is done stays done. Run the same command again.\n"),
    ],
    ids=repr,
)
def test_an_end_that_is_no_bug_is_one_line(error, code, line, capsys):
    assert ended(raised(error)) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("operands could not be broadcast"), RecursionError("deep")], ids=repr)
def test_a_bug_is_a_traceback(error, capsys):
    assert ended(raised(error)) == 5
    assert "Traceback" in (text := capsys.readouterr().err)
    assert str(error) in text


def test_no_message_has_a_secret(capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    for error in (RuntimeError("key hunter2"), OSError("https://h/x?sig=hunter2"), Stopped("s3://a:hunter2@b", 5)):
        ended(raised(error))
    assert "hunter2" not in capsys.readouterr().err


def start(program, *arguments):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), HERE])}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env=variables, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.parametrize("lines", [0, 3])
def test_a_closed_output_is_one_line_and_141(lines):
    """`python -m jobs.status | head -3`; with 0 the reader has gone before the first line."""
    with start(PRINTING) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        text = process.stderr.read()
    assert process.returncode == 141, text
    assert text == "error: the reader of this output has closed it, so this command has stopped\n"


ENDS = {
    # As a terminal sends it: to every process of the group, which are also Ray's.
    "ctrl-c": (lambda process: os.killpg(process.pid, signal.SIGINT), 130, "interrupted"),
    "sigterm": (lambda process: process.terminate(), 143, "ended from outside"),
}


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("serial", "ctrl-c"),
        ("serial", "sigterm"),
        ("ray", "ctrl-c"),
        pytest.param("ray", "sigterm", marks=pytest.mark.soak),
    ],
)
def test_a_run_that_is_ended_says_so_in_one_line(where, how):
    end, code, words = ENDS[how]
    with start(MAPPING, where) as process:
        timer = threading.Timer(100, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            assert process.stdout.readline() == "done\n"
            end(process)
            _, text = process.communicate(timeout=60)
        finally:
            timer.cancel()
    assert process.returncode == code, text
    assert text == f"error: {words}; what is done stays done. Run the same command again.\n"
