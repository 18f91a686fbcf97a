"""What a server keeps of the questions to an audit, below `questions/<audit>/<settings>/`, and its removal."""

import re
from collections.abc import Collection, Iterable

from concept_trak.store.gc import Garbage, existing
from concept_trak.store.store import Store

QUESTIONS = "questions"
QUESTION = "question"
"""The kind of these files."""
FILES = re.compile(
    r"questions/(?P<audit>[^/]+)/[0-9a-f]{12}/"
    r"(questions/[0-9a-f]{20}/(question\.json|answer\.json|top\.parquet|joint\.parquet)|pictures/[0-9a-f]{64}|"
    r"thumbnails/[0-9a-f]{24}\.(png|jpg))"
)


def unneeded_questions(store: Store, names: Iterable[str], living: Collection[str], before: float) -> list[Garbage]:
    """The questions to audits that are gone. Links to questions of living audits are permanent.

    Args:
        store: where they are.
        names: of the files below `questions/`.
        living: the names of the audits that stay.
        before: younger files stay, as a Unix time.
    """
    gone = [name for name in names if (file := FILES.fullmatch(name)) and file["audit"] not in living]
    free = [name for name in gone if not store.is_linked(name)]
    return [Garbage(QUESTION, name, size) for name, size, age in existing(store, free) if age < before]
