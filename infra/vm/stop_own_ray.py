"""End the Ray whose files lie in one folder: `python infra/vm/stop_own_ray.py /tmp/ray-concept-trak`.

`ray stop` ends every Ray process of the machine that this user may end, also those of another cluster. The processes of
a node have the node's temporary folder on their command lines; its workers end with their raylet.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

import psutil

PATIENCE = 20.0  # seconds between asking a process to end and killing it


def own_processes(folder: str) -> list[psutil.Process]:
    """The processes, other than this one, that have a path below `folder` on their command line."""
    prefix, processes = f"{folder.rstrip('/')}/", psutil.process_iter(["cmdline"])
    return [p for p in processes if p.pid != psutil.Process().pid and any(prefix in w for w in p.info["cmdline"] or ())]


def stop(folder: str) -> int:
    """End them, and wait until they have ended; returns how many there were."""
    processes = own_processes(folder)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended with another of them
            process.terminate()
    for process in running_after_patience(processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    running_after_patience(processes)
    return len(processes)


def running_after_patience(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Wait until all have ended, at most `PATIENCE`; returns those that have not."""
    deadline = time.monotonic() + PATIENCE
    while (running := [p for p in processes if is_running(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def is_running(process: psutil.Process) -> bool:
    """Not so for a zombie: it has ended, and its parent may never ask how (as PID 1 of many containers)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith("/"):
        sys.exit("expected the absolute path of one --temp-dir")
    print(f"{stop(sys.argv[1])} processes of {sys.argv[1]} ended")
