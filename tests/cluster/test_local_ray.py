"""Ray on this machine: as large as the process may be, and a run that ends when it dies."""

import os
import subprocess
import sys

import pytest

from tests.cluster.conftest import HERE
from tests.cluster.head import ROOT

DYING = """
import os, signal, sys
import psutil
import workers
from cluster.executor import InfrastructureExhausted, Task
from cluster.on_ray import OnRay

executor = OnRay(workers=2, env_vars={"PYTHONPATH": os.environ["PYTHONPATH"]})
outcomes = executor.map(Task(workers.Report, None), [0.1] * 2 + [2.0] * 100)
next(outcomes)
(process,) = [p for p in psutil.Process().children() if p.name() == sys.argv[1]]
process.send_signal(signal.SIGKILL)
try:
    list(outcomes)
except InfrastructureExhausted as error:
    print("error:", error)
try:
    list(executor.map(Task(workers.Report, None), [0.1]))
except InfrastructureExhausted as error:
    print("error:", error)
    sys.exit(error.exit_code)
"""
CORES = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import ray
from cluster.on_ray import OnRay
OnRay().connect()
print(ray.cluster_resources()["CPU"])
"""


def run(program, *arguments):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), HERE])}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.parametrize("process", ["raylet", pytest.param("gcs_server", marks=pytest.mark.soak)])
def test_a_run_whose_ray_has_died_ends_with_exit_code_4_and_one_sentence(process):
    """A map that goes on would take 100 s; without the check it waits for a node for ever."""
    ended = run(DYING, process)
    sentence = "error: Ray on this machine has died and does not come back; what is done stays done. Run the same"
    assert ended.returncode == 4, ended.stdout + ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == second == f"{sentence} command again."
    assert ended.stderr == ""


def test_ray_has_the_cores_that_the_process_may_use():
    """A process that a batch system bound to one core must not start a worker for each core of the machine."""
    assert run(CORES).stdout == "1.0\n"
