"""Factories the tests send to workers. Each worker is called (item, attempt)."""

import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.executor import UserError


@dataclass(frozen=True)
class Settings:
    """A configuration whose class the worker must import to unpickle it."""

    folder: str = ""
    word: str = ""


class Square:
    def __init__(self, config):
        self.config = config

    def __call__(self, item, attempt):
        return item * item


class Refusing:
    def __init__(self, config):
        raise UserError(config.word)


class Miscounting:
    """A bug that numpy reports as a ValueError."""

    def __init__(self, config):
        import numpy as np

        np.zeros(2) + np.zeros(3)


class Unbuildable:
    def __init__(self, config):
        raise RuntimeError(config.word)


class LateStorage(Square):
    """Cannot be built the first two times."""

    def __init__(self, config):
        tries = len(list(Path(config.folder).iterdir()))
        (Path(config.folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        if tries < 2:
            raise ConnectionError("weights are not there yet")


class Moody(Square):
    """Raises what the item says: ("application" | "input" | "numpy" | "storage" | "memory", how often)."""

    def __call__(self, item, attempt):
        kind, times = item
        if kind == "input":
            raise UserError("this item is malformed\nand this is its second line")
        if kind == "numpy" and attempt.number <= times:
            Miscounting(None)
        if attempt.number <= times:
            raise {"application": KeyError, "storage": ConnectionError, "memory": MemoryError}[kind](f"{kind} trouble")
        return attempt.number, attempt.halvings


class Stepwise(Square):
    """Reports the numbers of an item one after the other, and waits after each for a file of the sum's name."""

    def __call__(self, item, attempt):
        total = 0.0
        for step in item:
            attempt.report(step)
            total += step
            until = time.monotonic() + 60
            while not (Path(self.config) / f"{total:g}").exists():
                assert time.monotonic() < until, f"nobody has heard of {total:g} units"
                time.sleep(0.02)


class Killable(Square):
    """On the first attempt leaves its pid in the folder and waits to be killed; later attempts succeed."""

    def __call__(self, item, attempt):
        if item == "victim" and attempt.number == 1:
            (Path(self.config.folder) / str(os.getpid())).touch()
            time.sleep(120)
        return attempt.number


class Hanging(Square):
    """On the victim's first attempt leaves its pid in the folder and hangs, as the word says, until it is killed."""

    def __call__(self, item, attempt):
        if item == "victim" and attempt.number == 1:
            (Path(self.config.folder) / str(os.getpid())).touch()
            if self.config.word == "is stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()
        return attempt.number


class SlowlyBuilt(Hanging):
    """Its first construction does not end."""

    def __init__(self, config):
        super().__init__(config)
        if not list(Path(config.folder).iterdir()):
            (Path(config.folder) / str(os.getpid())).touch()
            threading.Event().wait()


class Greedy(Square):
    """The greedy item fills 100 MiB after 100 MiB, slowly enough to be stopped, until the batch has been halved."""

    def __call__(self, item, attempt):
        held = []
        while item == "greedy" and not attempt.halvings:
            assert len(held) < 60, "nobody stopped it"
            held.append(b"x" * (100 * 2**20))
            time.sleep(0.05)
        return attempt.number, attempt.halvings


class Leaving(Square):
    """Leaves a file named after the item when it is done."""

    def __call__(self, item, attempt):
        (Path(self.config.folder) / item).touch()
        return item


class Suicidal(Square):
    def __call__(self, item, attempt):
        if item == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return item


class Report(Square):
    """What its process looks like from inside."""

    def __call__(self, item, attempt):
        time.sleep(item)
        return {"pid": os.getpid(), "host": socket.gethostname(), "environment": dict(os.environ)}


class Unpicklable(Square):
    def __call__(self, item, attempt):
        return (part for part in item)


class OnNode(Square):
    """Leaves the id of its node in the folder; the victim's first attempt waits there for the node to be removed."""

    def __call__(self, item, attempt):
        import ray

        (Path(self.config.folder) / f"{item}-{attempt.number}").write_text(ray.get_runtime_context().get_node_id())
        if item == "victim" and attempt.number == 1:
            time.sleep(120)
        here = Path(__file__).parent
        return attempt.number, str(here), sorted(entry.name for entry in here.iterdir())
