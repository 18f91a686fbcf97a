"""Drivers as real processes, signals sent to them from outside, and faults at an exact write.

A driver is forked from a process that has imported everything, so that a test costs the audit and not the imports.
Production code knows nothing of faults: they are armed in the forked process, or come from outside.
"""

import atexit
import ctypes
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import pytest

from cluster.executor import ONE_CPU, Task, unwatched
from cluster.serial import Serial
from cluster.worker import WorkerActor
from concept_trak.audit import featurize
from concept_trak.config import AuditConfig
from concept_trak.store.store import Store
from jobs.audit import AuditRunConfig, audit
from jobs.components import ComponentsConfig, components
from jobs.configure import CONF, main
from jobs.execute import RunConfig
from jobs.gc import GcConfig, gc
from tests.few_steps import draw_in_few_steps

HERE = str(Path(__file__).parent)
ACTOR = f"ray::{WorkerActor.__name__}"  # how the command of a worker begins; the agents of Ray are called ray:: too
LONGEST = 120.0  # seconds a test waits for what should have come long before


class Fault(Protocol):
    """Something that goes wrong in the process that arms it."""

    def arm(self) -> None: ...


@dataclass(frozen=True)
class AtCreate:
    """Fault injection: a signal of the process to itself at the `nth` create of a name that matches, before it or
    after it.
    """

    pattern: str
    nth: int = 1
    after: bool = False
    signal: int = signal.SIGKILL

    def arm(self) -> None:
        create, numbers = Store.create, itertools.count(1)

        def struck(store: Store, name: str, data: bytes) -> bool:
            now = fnmatch(name, self.pattern) and next(numbers) == self.nth
            if now and not self.after:
                os.kill(os.getpid(), self.signal)
            created = create(store, name, data)
            if now and self.after:
                os.kill(os.getpid(), self.signal)
            return created

        Store.create = struck


@dataclass(frozen=True)
class AtDelete:
    """Fault injection: killed at the delete of a name that matches, before it or after it."""

    pattern: str
    after: bool = False

    def arm(self) -> None:
        delete = Store.delete

        def struck(store: Store, name: str) -> None:
            if self.after:
                delete(store, name)
            if fnmatch(name, self.pattern):
                os.kill(os.getpid(), signal.SIGKILL)
            if not self.after:
                delete(store, name)

        Store.delete = struck


@dataclass(frozen=True)
class InsideWrite:
    """Fault injection: killed when the bytes are on disk under a temporary name, at the `nth` file that matches."""

    pattern: str
    nth: int = 1

    def arm(self) -> None:
        link, numbers = os.link, itertools.count(1)

        def struck(temporary: str, path: str) -> None:
            if fnmatch(path, self.pattern) and next(numbers) == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
            link(temporary, path)

        os.link = struck


@dataclass(frozen=True)
class SmallFiles:
    """No file of this process grows over `limit` bytes: a quota, by the operating system."""

    limit: int

    def arm(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


@dataclass(frozen=True)
class BoundByModes:
    """File modes bind this process though it may be root's: it gives up every capability, capset(2)."""

    def arm(self) -> None:
        version_3_and_this_process, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capset(version_3_and_this_process, none) == 0, f"capset: {os.strerror(ctypes.get_errno())}"


@dataclass(frozen=True)
class Breaks:
    """Fault injection: the work of the shard at `first_row` of the source `file` fails, every time."""

    file: str
    first_row: int

    def arm(self) -> None:
        original = featurize.FeaturizeWorker.__call__

        def broken(worker: featurize.FeaturizeWorker, item: featurize.FeaturizeTask, attempt: featurize.Attempt):
            if item.shard.source.endswith(self.file) and item.shard.first_row == self.first_row:
                raise KeyError("a bug that only this shard meets")
            return original(worker, item, attempt)

        featurize.FeaturizeWorker.__call__ = broken


@dataclass(frozen=True)
class Hires:
    """Fault injection: who featurizes on Ray is a `worker` of `deadly.py`; they keep their books in `books`."""

    worker: str
    books: str = ""

    def arm(self) -> None:
        from cluster.on_ray import OnRay

        sys.path.insert(0, HERE)
        hired = OnRay.map

        def deadly(executor: OnRay, task: Task, items, resources=ONE_CPU, watch=unwatched):
            if task.worker is featurize.FeaturizeWorker:
                task = replace(task, worker=getattr(import_module("deadly"), self.worker))
                said = {"PYTHONPATH": f"{CONF.parent}{os.pathsep}{HERE}", "DEADLY_BOOKS": self.books}
                idle = executor.idle_actors  # of the stages before: they hold CPUs until others are needed
                executor = replace(executor, env_vars={**executor.env_vars, **said})
                object.__setattr__(executor, "idle_actors", idle)
            return hired(executor, task, items, resources, watch)

        OnRay.map = deadly


@dataclass(frozen=True)
class OnlyFeaturizesOnRay:
    """What comes after the features is done by the driver itself, to spare the time of building workers for it."""

    def arm(self) -> None:
        from cluster.on_ray import OnRay

        whole = OnRay.map

        def mixed(executor: OnRay, task: Task, items, resources=ONE_CPU, watch=unwatched):
            if task.worker is featurize.FeaturizeWorker:
                return whole(executor, task, items, resources, watch)
            return Serial(executor.budgets).map(task, items, resources, watch)

        OnRay.map = mixed


@dataclass(frozen=True)
class Driver:
    """One run of `python -m jobs.audit`, or of another verb, as a process."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def said(self) -> str:
        """Everything it wrote to its terminal."""
        return self.log.read_text()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = LONGEST) -> int:
        """Its exit code; below zero, the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the driver did not end in {seconds:.0f} s; it said:\n{self.said}")
        return self.process.exitcode


def drive(arguments: Sequence[str], log: Path, *faults: Fault, verb: str = "audit") -> Driver:
    """Start `python -m jobs.<verb>` with these arguments; its words go to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "concept_trak.models.text_to_image"])
    process = context.Process(target=_main, args=(verb, tuple(arguments), str(log), faults))
    process.start()
    return Driver(process, log)


VERBS = {
    "audit": (audit, "config", AuditConfig, AuditRunConfig),
    "gc": (gc, "gc", GcConfig),
    "components": (components, "components", ComponentsConfig, RunConfig),
}


def _main(verb: str, arguments: tuple[str, ...], log: str, faults: tuple[Fault, ...]) -> None:
    words = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(words, stream)
    os.chdir(CONF.parent)
    draw_in_few_steps(pytest.MonkeyPatch())
    for fault in faults:
        fault.arm()
    sys.argv = [f"jobs.{verb}", *arguments]
    try:
        main(*VERBS[verb])
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them, and Ray stops its own in them


def until(true: Callable[[], object], what: str, seconds: float = LONGEST) -> None:
    """Look every 2 ms until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.002)


def appear(folder: Path, pattern: str, count: int, seconds: float = LONGEST) -> None:
    """Wait until `count` files below the folder match the pattern."""
    until(lambda: len(list(folder.glob(pattern))) >= count, f"{count} files {pattern} below {folder}", seconds)


def processes() -> dict[int, tuple[int, str]]:
    """Every process of this machine: its parent's pid and its command line."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in listed.splitlines())
    return {int(row[0]): (int(row[1]), row[2] if len(row) > 2 else "") for row in rows}


def descendants(pid: int) -> dict[int, str]:
    """The command lines of a process's children and theirs, by pid."""
    everyone, found, newest = processes(), {}, {pid}
    while newest:
        children = {child: command for child, (parent, command) in everyone.items() if parent in newest}
        newest = set(children) - set(found)
        found |= children
    return found
