"""Workers that are looked at while they work, and how an audit's status is asked for."""

import time
from pathlib import Path

from concept_trak.audit.status import describe_status
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store


def told(store: Path | str) -> list[str]:
    """What the status says of the audit `first`."""
    return describe_status(Audit(Store(str(store)), "first"))


class Item(str):
    """A task that is its own label, and stands for one sample."""

    samples = 1

    @property
    def label(self) -> str:
        return str(self)


class Gated:
    """Ends no item before there is a file `open` in its folder."""

    def __init__(self, folder):
        self.gate = Path(folder) / "open"

    def __call__(self, item, attempt):
        while not self.gate.exists():
            time.sleep(0.05)
        return item


class Asking:
    """Asks for the status of the store it is given while it works."""

    def __init__(self, store):
        self.store = store

    def __call__(self, item, attempt):
        return "\n".join(told(self.store))
