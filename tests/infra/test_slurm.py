"""The Slurm script: what it starts where, what ends with it, and one real audit. `srun` and `scontrol` are fakes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.head import free_ports
from tests.infra.manifests import ROOT
from tests.jobs.world import build

SCRIPT = ROOT / "infra/slurm/audit.sbatch"
FAKE_PROGRAM = """#!/bin/bash
# A fake: notes how it is called, and waits to be ended where the real one would.
echo "$(basename "$0") $* token=${RAY_AUTH_TOKEN:-none}" >> "$CALLS"
case "$(basename "$0") $*" in
  *get_node_ip_address*) echo 10.0.0.1 ;;
  *token_hex*) echo 5ec2e7 ;;
  *nodes.py*) until [ "$(cat "$CALLS.pids" 2>/dev/null | wc -l)" -ge "$STARTS" ]; do sleep 0.05; done
    exit "${NODES_CODE:-0}" ;;
  *jobs.audit*) if [ -n "${LONG:-}" ]; then exec sleep 600; fi; exit "${AUDIT_CODE:-0}" ;;
  scontrol*) ;;
  *) echo $$ >> "$CALLS.pids"; exec sleep 600 ;;
esac
"""


@pytest.fixture
def job(tmp_path) -> dict[str, str]:
    """The environment of a job on three nodes, whose programs are fakes."""
    for name in ("python", "ray", "srun", "scontrol"):
        (tmp_path / name).write_text(FAKE_PROGRAM)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "PYTHON": str(tmp_path / "python"),
        "SCRATCH": str(tmp_path / "scratch"), "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "4", "SLURMD_NODENAME": "n01", "STARTS": "2",
    }  # fmt: skip


def run(job: dict[str, str], *arguments: str, seconds: int = 100) -> "subprocess.CompletedProcess[str]":
    """The script to its end. It is told to end, as by Slurm, when its time is up."""
    command = ["timeout", str(seconds), "bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=ROOT, env=job, capture_output=True, text=True, check=False)


def calls(job: dict[str, str]) -> list[str]:
    return Path(job["CALLS"]).read_text().splitlines()


def pids(job: dict[str, str]) -> list[int]:
    return [int(pid) for pid in Path(job["CALLS"] + ".pids").read_text().split()]


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_bash_can_read_it():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    assert subprocess.run(["shellcheck", str(SCRIPT)], check=False).returncode == 0


def test_a_head_on_the_first_node_workers_on_the_others_then_the_audit(job):
    done = run(job, "--config-name", "weekly", "audit=week 1")
    assert done.returncode == 0, done.stderr
    offer = f"--num-cpus=16 --num-gpus=4 --temp-dir={job['SCRATCH']} --block token=5ec2e7"
    assert f"ray start --head --port=24711 --include-dashboard=false {offer}" in calls(job)
    (srun,) = (call for call in calls(job) if call.startswith("srun"))
    assert "--nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --exclude=n01" in srun
    assert srun.endswith(f"{Path(job['PYTHON']).parent}/ray start --address=10.0.0.1:24711 {offer}")
    audit = "python -m jobs.audit cluster=ray cluster.address=10.0.0.1:24711 --config-name weekly audit=week 1"
    assert "python infra/nodes.py 10.0.0.1:24711 3 300 token=5ec2e7" in calls(job)
    assert calls(job)[-1] == f"{audit} token=5ec2e7", "the audit is begun before the nodes are there"
    assert len(pids(job)) == 2
    assert not any(map(runs, pids(job))), "a Ray outlives the job"


def test_one_node_needs_no_srun(job):
    assert run(job | {"SLURM_JOB_NUM_NODES": "1", "STARTS": "1"}).returncode == 0
    assert not [call for call in calls(job) if call.startswith("srun")]


@pytest.mark.parametrize(
    ("more", "code", "again"),
    [
        ({"AUDIT_CODE": "3"}, 3, False),
        ({"AUDIT_CODE": "4"}, 4, True),
        ({"AUDIT_CODE": "4", "SLURM_RESTART_COUNT": "3"}, 4, False),
        ({"NODES_CODE": "4"}, 4, True),
    ],
)
def test_the_exit_code_is_the_audits_and_failed_machines_are_tried_again(job, more, code, again):
    assert run(job | more).returncode == code
    assert ("scontrol requeue 4711 token=5ec2e7" in calls(job)) == again
    assert any("jobs.audit" in call for call in calls(job)) == ("NODES_CODE" not in more)
    assert not any(map(runs, pids(job)))


def test_everything_ends_when_slurm_says_that_the_time_is_up(job):
    process = subprocess.Popen(["bash", str(SCRIPT)], cwd=ROOT, env=job | {"LONG": "1"})
    end = time.monotonic() + 60
    while not (Path(job["CALLS"]).exists() and "jobs.audit" in Path(job["CALLS"]).read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not any(map(runs, pids(job)))


@pytest.mark.soak
@pytest.mark.timeout(700)
def test_a_real_audit_on_a_real_ray(job, tmp_path):
    world = build(tmp_path / "world")
    (tmp_path / "scratch").mkdir()
    real = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    own = {"PYTHON": sys.executable, "SCRATCH": f"/tmp/ray-{os.getpid()}", "PORT": str(free_ports(1)[0])}
    job = real | job | {"SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "0"} | own
    arguments = [a for a in world.arguments(tmp_path / "store", "cluster.shared_store=true") if a != "cluster=serial"]
    done = run(job | {"PATH": os.environ["PATH"]}, *arguments, seconds=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ray        1 nodes at" in done.stdout
    assert (tmp_path / "store/audits/first/manifest.json").exists()
    assert not Path(own["SCRATCH"]).exists()
