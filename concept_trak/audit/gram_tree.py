"""The tree of sums of a plan's Gram matrices: a leaf sums shards, and every other node sums nodes.

The names decide the groups: at every level, a group ends after a name whose hash is 0 mod 16. A source that is added or
removed therefore changes only its own leaves and the nodes above them.
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
"""The largest number of Gram matrices that a solve reads. A tree with at most this many leaves has no other nodes."""


@dataclass(frozen=True, eq=False)
class GramNode:
    """The sum over the shards `first` ... `stop` - 1 of a plan.

    Attributes:
        name: a hash over the names of the children; for a leaf, over the hashes of its shards.
        first: the index of the first shard.
        stop: one more than the index of the last shard.
        children: the nodes that are summed; none for a leaf.
    """

    name: str
    first: int
    stop: int
    children: tuple["GramNode", ...] = ()


@dataclass(frozen=True)
class GramTree:
    """The levels of the tree, the leaves first. A solve reads the last level, which has at most `MOST_READ` nodes."""

    levels: tuple[tuple[GramNode, ...], ...]

    @property
    def top(self) -> tuple[GramNode, ...]:
        return self.levels[-1]

    @property
    def nodes(self) -> Iterator[GramNode]:
        """Every node, the leaves first."""
        return chain.from_iterable(self.levels)

    def missing(self, exists: Callable[[str], bool]) -> list[list[GramNode]]:
        """The nodes to compute, level by level, the leaves first. A node that exists makes those below it unnecessary.

        Args:
            exists: whether the node of a name is in the store.
        """
        levels, needed = list[list[GramNode]](), list(self.top)
        for _ in self.levels:
            levels.append([node for node in needed if not exists(node.name)])
            needed = [child for node in levels[-1] for child in node.children]
        return levels[::-1]


def gram_tree(plan: Sequence[Shard]) -> GramTree:
    """The tree over a plan; it depends only on the shards and their order."""
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
    """The items in groups, in order; a group ends after an item whose hash (hexadecimal) is 0 mod `FAN`."""
    groups: list[list[T]] = [[]]
    for item in items:
        groups[-1].append(item)
        if int(hash_of(item), 16) % FAN == 0:
            groups.append([])
    return [group for group in groups if group]


def group_name(hashes: Sequence[str]) -> str:
    """The name of a group: a hash of its members, so that other groups have other files."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def _leaves(plan: Sequence[Shard]) -> Iterator[GramNode]:
    first = 0
    for group in cut_by_content(plan, lambda shard: shard.hash):
        yield GramNode(group_name([shard.hash for shard in group]), first, first + len(group))
        first += len(group)
