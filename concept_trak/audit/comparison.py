"""How far two rankings of one concept give the same answer: by their tops, and by the ranks of a sample of all."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from concept_trak.attribution.concept import Concept
from concept_trak.audit.results import Key, Tally
from concept_trak.audit.retrieval_ranks import column
from concept_trak.audit.score_sample import rank_correlation
from concept_trak.config import AuditConfig


@dataclass(frozen=True)
class Overlap:
    """Two rankings of one concept, each named in words: the method, or the method and the form.

    Attributes:
        shared: how many of the first `of` samples they share.
        correlation: Spearman's, of the ranks of the `sampled` samples; None if it is not known.
        only_first, only_second: the samples that one of them alone has among its first `of`, the best first.
    """

    first: str
    second: str
    shared: int
    of: int
    correlation: float | None = None
    sampled: int = 0
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()

    @property
    def differ(self) -> bool:
        """Whether they share less than half."""
        return 2 * self.shared < self.of


def overlaps(config: AuditConfig, tally: Tally, concept: Concept) -> tuple[Overlap, ...]:
    """The comparison of both forms of each method, and of the damped forms of any two methods.

    The tops are the samples that the page shows; all that are ranked if it shows none.
    """
    return tuple(_overlap(config, tally, *sides) for sides in _pairs(config, concept))


Side = tuple[str, Key]  # the ranking in words, and its column


def _pairs(config: AuditConfig, concept: Concept) -> Iterator[tuple[Side, Side]]:
    damped, plain = (column(concept.name, form) for form in ("damped", "plain"))
    for method in config.methods:
        yield (f"{method}, damped", (method, damped)), (f"{method}, plain", (method, plain))
    for method, other in combinations(config.methods, 2):
        yield (method, (method, damped)), (other, (other, damped))


def _overlap(config: AuditConfig, tally: Tally, first: Side, second: Side) -> Overlap:
    (name, key), (other_name, other_key) = first, second
    tops = [[entry[1] for entry in tally.ends[own].top[: config.shown or config.top]] for own in (key, other_key)]
    correlation = rank_correlation(tally.sample.get(key, {}), tally.sample.get(other_key, {}))
    return Overlap(
        first=name,
        second=other_name,
        shared=len({*tops[0]} & {*tops[1]}),
        of=min(map(len, tops)),
        correlation=correlation and correlation.value,
        sampled=correlation.samples if correlation else 0,
        only_first=tuple(sample for sample in tops[0] if sample not in tops[1]),
        only_second=tuple(sample for sample in tops[1] if sample not in tops[0]),
    )
