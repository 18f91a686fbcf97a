"""What of a later audit's samples is new data, and what was there before under the same id.

A shard carries its file's version in its name, so of a file that was written anew every shard has a new name, whatever
changed in it. What tells then is the sample itself: whether the earlier audit has a feature under its id, and whether
that is the same, as the same image and caption give it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from concept_trak.store.commit import Store
from concept_trak.store.lookup import alike, features, holders

SAME, CHANGED, NEW = "same", "changed", "new"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One method's features in one audit: whose they are, and the plan they were computed by."""

    fingerprint: str
    plan: Sequence[Row]

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(row["shard"] for row in self.plan)


def novelty(store: Store, rows: Iterable[Row], before: Side, after: Side) -> dict[str, str]:
    """For samples of the later side (`sample_id`, `source`, `row`): same, changed, or new.

    Of a file that was written anew a sample is `changed` if its feature is another one, or if none of the two audits'
    features can be compared (another model, another method's settings); `new` if the earlier audit has none under its
    id. All other samples are `same` if their file was there, else `new`.
    """
    place = {row["sample_id"]: shard_of(row, after.plan) for row in rows}
    known, there = before.shards, after.shards
    doubtful = {sample: shard for sample, shard in place.items() if shard not in known}
    left = [shard["shard"] for shard in before.plan if shard["shard"] not in there]
    old = holders(store, before.fingerprint, left, doubtful.keys()) if doubtful else {}
    found = dict.fromkeys(place, SAME) | dict.fromkeys(doubtful, NEW) | dict.fromkeys(old, CHANGED)
    if before.fingerprint == after.fingerprint and old:
        ours, theirs = (features(store, before.fingerprint, places) for places in ({i: doubtful[i] for i in old}, old))
        found |= {i: SAME for i in old if alike(ours[i], theirs[i])}
    return found


def shard_of(row: Row, plan: Sequence[Row]) -> str:
    """The shard of a plan that holds a row of a source."""
    for shard in plan:
        if shard["source"] == row["source"] and 0 <= row["row"] - shard["first_row"] < shard["rows"]:
            return shard["shard"]
    raise AssertionError(f"{row['source']} row {row['row']} is in the top and in no shard of the plan")
