"""The answer about a concept in a sentence, by method: what stands out with its interval, or why nothing does; and how
far two methods agree."""

from dataclasses import dataclass

from concept_trak.attribution.fisher import NO_FEATURES
from concept_trak.audit.aggregate import GroupStatistics
from concept_trak.audit.comparison import Overlap
from concept_trak.data.text import escaped
from concept_trak.report.audit_page import AnswerInWords, Ranking, Section
from concept_trak.report.render import STANDS_OUT, Column, below, columns, number, ratio

RELIABLE = 0.5
"""Least reliability of scores that can be ranked by: half of their variance is not noise."""
LONE = (
    "It is about this one picture, with its background: a lone example cannot be checked against another. Give more "
    "pictures that share the concept and nothing else."
)
NAMED = 3
"""Samples that one ranking alone has, which a line names."""
IN_WORDS = {"label": "images labelled {}", "word": "images with {} in their caption", "source": "the images of {}"}


@dataclass(frozen=True)
class Strongest:
    """The group of samples whose mean score is farthest above that of all, of any kind."""

    kind: str
    group: GroupStatistics


def answers(section: Section, data: str) -> tuple[AnswerInWords, ...]:
    """The answer of each method to the question of a section.

    Args:
        data: `data.uri`, below which sources are named.
    """
    return tuple(_answer(section, column, data) for column in columns(section))


def _answer(section: Section, column: Column, data: str) -> AnswerInWords:
    why_not = _why_nothing(section, column.method) if column.main.span else no_features(column.method)
    if why_not or not column.main.top:
        return AnswerInWords(column.method, False, f"{why_not or 'No image is ranked.'}{_lone(section)}")
    strongest = _strongest(column.main)
    stands_out = strongest is not None and strongest.group.errors >= STANDS_OUT
    return AnswerInWords(
        column.method, stands_out, f"{_group(strongest, data)}{_highest(section, column)}{_lone(section)}"
    )


def _lone(section: Section) -> str:
    return f" {LONE}" if section.examples == 1 else ""


def too_little_agreement(examples: int, reliability: float) -> str:
    """Why scores are no answer that differ too much between groups of a query's samples; empty if they do not.

    Args:
        examples: the number of example pictures; the groups share none of several.
        reliability: of the scores.
    """
    if reliability >= RELIABLE:
        return ""
    unlike = (
        f"the {examples} examples agree too little with each other"
        if examples > 1
        else ("the samples of this query agree too little")
    )
    return f"Nothing stands out: {unlike} to rank by (reliability {ratio(reliability)})."


def no_features(method: str) -> str:
    """The answer of a method whose features, and so whose scores, are all zero."""
    return f"Nothing in this data taught it, as far as {method} can tell: {NO_FEATURES}"


def _why_nothing(section: Section, method: str) -> str:
    """Why no image can be named; empty if some can."""
    fit, own = section.fit, section.certainty.get(method)
    if fit is not None and not fit.told:
        return (
            f"Nothing in this data is shown to have taught it: in its own pictures the model does not tell "
            f"“{section.text}” from “{section.without}” (fit {number(fit.coefficient)}, standard error "
            f"{number(fit.error)}; 1 and at most 0.25 where it does). The order follows at most the words of captions."
        )
    if own is not None and (why := too_little_agreement(section.examples, own.reliability)):
        return why
    if own is not None and own.above_noise == 0:
        return "Nothing stands out: no score is higher than noise of the query's size would make one."
    return ""


def _strongest(ranking: Ranking) -> Strongest | None:
    groups = [Strongest(kind, rows[0]) for kind in IN_WORDS if (rows := ranking.groups.get(kind, ()))]
    return max(groups, key=lambda strongest: strongest.group.errors, default=None)


def _group(strongest: Strongest | None, data: str) -> str:
    if strongest is None:
        return ""
    if strongest.group.errors < STANDS_OUT:
        return f"No source, label or word stands out by {STANDS_OUT:g} standard errors. "
    named = IN_WORDS[strongest.kind].format(f"“{below(strongest.group.name, data)}”")
    return (
        f"{named[0].upper()}{named[1:]} taught it most: their mean score is {number(strongest.group.errors)} standard "
        "errors above that of all images. "
    )


def _highest(section: Section, column: Column) -> str:
    first, own = column.main.top[0], section.certainty.get(column.method)
    text = f"The highest score is {number(first.score)}"
    if first.interval:
        low, high, _, last = first.interval
        text += f" (90 % interval {number(low)} to {number(high)}, rank 1 to {last:,})"
    if own is None:
        return f"{text}; one sample of the query gives no interval."
    return (
        f"{text}. {own.shared:,} of the first {own.of:,} are first by either half of the query's samples "
        f"({own.by_chance:.1f} by chance)."
    )


def overlap_line(overlap: Overlap) -> str:
    """How far two rankings agree, and the first samples that one of them alone has."""
    text = f"{overlap.first} and {overlap.second} share {overlap.shared} of their first {overlap.of}"
    if overlap.correlation is not None:
        text += f"; the ranks of {overlap.sampled:,} samples correlate to {overlap.correlation:.2f}"
    for name, samples in ((overlap.first, overlap.only_first), (overlap.second, overlap.only_second)):
        if samples:
            more = ", ..." if len(samples) > NAMED else ""
            text += f"; only {name}: {', '.join(map(escaped, samples[:NAMED]))}{more}"
    return text
