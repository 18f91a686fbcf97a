"""Stopping one cluster's Ray leaves everybody else's alone."""

import subprocess
import sys
import time

import psutil
import pytest

from infra.vm.stop_own_ray import is_running, own_processes, running_after_patience
from tests.cluster.head import nodes, standing
from tests.infra.manifests import ROOT

SCRIPT = str(ROOT / "infra/vm/stop_own_ray.py")


def sleeper(*words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", *words])


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_only_processes_of_the_folder_end(tmp_path):
    folder = tmp_path / "ray-own"
    own = [sleeper(f"--log-dir={folder}/session_1/logs"), sleeper(f"{folder}/session_1/sockets/raylet")]
    others = [sleeper(f"{folder}-2/session_1/logs"), sleeper(str(folder)), sleeper("raylet")]
    try:
        done = run(str(folder))
        assert done.stdout == f"2 processes of {folder} ended\n", done.stderr
        assert not any(map(is_running, map(psutil.Process, (p.pid for p in own)))), "it did not wait for their end"
        assert all(process.wait(1) != 0 for process in own)
        assert all(process.poll() is None for process in others)
        assert run(f"{folder}/").stdout == f"0 processes of {folder}/ ended\n"
    finally:
        for process in (*own, *others):
            process.kill()
            process.wait()


def test_a_process_that_nobody_has_waited_for_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        ended = psutil.Process(process.pid)
        while ended.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert running_after_patience([ended]) == []
    finally:
        process.wait()


@pytest.mark.parametrize("arguments", [(), ("ray",), ("/a", "/b"), ("",)])
def test_without_one_absolute_path_nothing_ends(arguments):
    done = run(*arguments)
    assert done.returncode != 0
    assert done.stderr == "expected the absolute path of one --temp-dir\n"


@pytest.mark.soak
def test_a_real_ray_ends_whole_and_another_one_lives(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with standing(tmp_path / "a", cpus=1) as first, standing(tmp_path / "b", cpus=1) as second:
        before = own_processes(str(first.folder))
        assert {"gcs_server", "raylet"} <= {process.name() for process in before}
        assert run(str(first.folder)).returncode == 0
        assert not own_processes(str(first.folder))
        assert not [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert len(nodes(second.dashboard)) == 1
