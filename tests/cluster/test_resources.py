"""How many cores a process may use, read from control groups as Linux lays them out."""

import os

import pytest

from cluster.resources import usable_cpus
from concept_trak import UserError
from jobs.execute import ClusterConfig, worker_settings

OWN = len(os.sched_getaffinity(0))


def tree(root, membership, **files):
    """A root folder with this /proc/self/cgroup, and with these files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    monkeypatch.setattr("cluster.resources.os.sched_getaffinity", lambda pid: set(range(64)))


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/slice/job\n", {"slice/job/cpu.max": "800000 100000\n", "slice/cpu.max": "300000 100000\n"}, 3),
        ("0::/slice/job\n", {"slice/job/cpu.max": "max 100000\n", "slice/cpu.max": "max 100000\n"}, 64),
        ("0::/docker/abc\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../other\n", {"cpu.max": "200000 100000\n"}, 2),
        (
            "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            {"cpu/docker/abc/cpu.cfs_quota_us": "600000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"},
            6,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_the_quota_of_a_control_group_holds(tmp_path, membership, files, cores):
    assert usable_cpus({}, tree(tmp_path, membership, **files)) == cores


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "32"}, 8),
        ({"SLURM_CPUS_ON_NODE": "32"}, 32),
        ({"SLURM_CPUS_ON_NODE": "128"}, 64),
        ({"SLURM_CPUS_PER_TASK": ""}, 64),
        ({}, 64),
    ],
)
def test_slurms_share_holds(tmp_path, variables, cores):
    assert usable_cpus(variables, tmp_path) == cores


def test_the_affinity_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.resources.os.sched_getaffinity", lambda pid: {3, 7, 11})
    assert usable_cpus({"SLURM_CPUS_ON_NODE": "8"}, tree(tmp_path, "0::/\n", **{"cpu.max": "800000 100000\n"})) == 3


def test_on_this_machine_it_is_at_most_the_affinity(monkeypatch):
    monkeypatch.undo()
    assert 1 <= usable_cpus({}) <= OWN


@pytest.mark.parametrize(("cpus", "workers", "neighbours"), [(1.0, 0, 3), (2.0, 0, 1), (4.0, 0, 1), (1.0, 2, 2)])
def test_local_workers_share_memory_by_the_cores_that_the_process_may_use(monkeypatch, cpus, workers, neighbours):
    monkeypatch.setattr("cluster.resources.os.sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setattr("cluster.resources._quotas", lambda root: iter([]))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    cluster = ClusterConfig(kind="local", cpus=cpus, workers=workers)
    assert worker_settings(cluster).neighbours == neighbours


def test_a_worker_has_a_part_of_a_gpu_or_whole_ones():
    with pytest.raises(UserError, match=r"cluster\.gpus=1\.5; expected at most 1, or a whole number of GPUs"):
        ClusterConfig(gpus=1.5)
    assert [worker_settings(ClusterConfig(gpus=gpus)).gpus for gpus in (0, 0.5, 1, 2)] == [0, 1, 1, 2]
