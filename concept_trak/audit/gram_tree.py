"""The tree by which the Grams of a plan are summed: leaves over shards, nodes over nodes, cut by content.

A group ends after a name whose hash is 0 mod 16, at every level, so that a data set that grows or loses a source
changes the leaves that the source is in and the nodes above them, and no others.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from concept_trak.data.shard import Shard

T = TypeVar("T")
FAN = 16  # children of a node, on average
MOST_READ = 64
"""The most Grams that a solve reads. At most so many leaves form the whole tree: a flat list, summed in its order."""


@dataclass(frozen=True, eq=False)
class GramNode:
    """One sum, over the shards `first` ... `stop` - 1 of a plan.

    Attributes:
        name: a hash over the names of the children, or over the hashes of a leaf's shards.
        first, stop: the shards below it.
        children: the nodes that it adds; none for a leaf.
    """

    name: str
    first: int
    stop: int
    children: tuple["GramNode", ...] = ()


@dataclass(frozen=True)
class GramTree:
    """The levels of the tree, the leaves first; the last has at most `MOST_READ` nodes, which a solve reads."""

    levels: tuple[tuple[GramNode, ...], ...]

    @property
    def top(self) -> tuple[GramNode, ...]:
        return self.levels[-1]

    @property
    def nodes(self) -> Iterator[GramNode]:
        """Every node, the leaves first."""
        return chain.from_iterable(self.levels)

    def missing(self, exists: Callable[[str], bool]) -> list[list[GramNode]]:
        """The nodes to sum, level by level, the leaves first. Below a node that exists nothing is needed."""
        levels, needed = list[list[GramNode]](), list(self.top)
        for _ in self.levels:
            levels.append([node for node in needed if not exists(node.name)])
            needed = [child for node in levels[-1] for child in node.children]
        return levels[::-1]


def gram_tree(plan: Sequence[Shard]) -> GramTree:
    """The tree over a plan; it depends on the shards and their order alone."""
    level = tuple(_leaves(plan))
    levels = [level]
    while len(level) > MOST_READ:
        groups = cut_by_content(level, lambda node: node.name)
        level = tuple(
            GramNode(group_name([n.name for n in group]), group[0].first, group[-1].stop, tuple(group))
            for group in groups
        )
        levels.append(level)
    return GramTree(tuple(levels))


def cut_by_content(items: Sequence[T], hash_of: Callable[[T], str]) -> list[list[T]]:
    """Consecutive items, in order, cut after every one whose hash (hexadecimal) is 0 mod `FAN`."""
    groups: list[list[T]] = [[]]
    for item in items:
        groups[-1].append(item)
        if int(hash_of(item), 16) % FAN == 0:
            groups.append([])
    return [group for group in groups if group]


def group_name(hashes: Sequence[str]) -> str:
    """The name of a group, a hash of its members, so that another cut gives another file."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def _leaves(plan: Sequence[Shard]) -> Iterator[GramNode]:
    first = 0
    for group in cut_by_content(plan, lambda shard: shard.hash):
        yield GramNode(group_name([shard.hash for shard in group]), first, first + len(group))
        first += len(group)
