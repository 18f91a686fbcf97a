"""The sentence about a concept: what it names, and what it does not name out of noise."""

from dataclasses import replace

import pytest

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.concept_fit import ConceptFit
from concept_trak.audit.aggregate import GroupStatistics
from concept_trak.audit.score_spread import Certainty
from concept_trak.report.answer_in_words import answers
from concept_trak.report.audit_page import AnswerInWords, Section
from concept_trak.report.publish_audit import concept_lines
from concept_trak.report.render import render
from tests.report.outline import parse
from tests.report.pages import page

SURE = Certainty(reliability=0.95, of=24, shared=20, by_chance=0.2, above_noise=24)
TOLD = ConceptFit(0.97, 0.1)


@pytest.fixture(scope="module")
def section() -> Section:
    return replace(page().sections[1], fit=TOLD)


def asked(section: Section, errors: float = 9.0, **changes) -> AnswerInWords:
    """The first method's answer, where the best group has this many errors."""
    first, *rest = section.rankings
    top = replace(first.top[0], interval=(0.5, 1.5, 1, 40))
    group = GroupStatistics(name="colour = red", samples=30, mean=0.5, share=0.2, errors=errors)
    groups = {"source": (replace(group, name="file:///d/a.parquet", errors=1.0),), "label": (group,)}
    ranking = replace(first, top=(top, *first.top[1:]), groups=groups)
    changed = replace(section, rankings=(ranking, *rest), certainty={first.method: SURE})
    return answers(replace(changed, **changes), "file:///d")[0]


def test_an_answer_names_what_stands_out_with_its_interval(section):
    answer = asked(section)
    assert answer.clear
    assert answer.text.startswith(
        "Images labelled “colour = red” taught it most: their mean score is 9.00 standard errors"
    )
    assert "(90 % interval 0.500 to 1.50, rank 1 to 40)" in answer.text
    assert "20 of the first 24 are first by either half of the query's samples (0.2 by chance)" in answer.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"errors": 2.9}, "No source, label or word stands out by 3 standard errors."),
        (
            {"certainty": {"concept_trak": replace(SURE, reliability=0.4)}},
            "Nothing stands out: the samples of this query",
        ),
        (
            {"certainty": {"concept_trak": replace(SURE, reliability=0.4)}, "examples": 3},
            "Nothing stands out: the 3 examples agree too little with each other to rank by (reliability 0.400).",
        ),
        ({"certainty": {"concept_trak": replace(SURE, above_noise=0)}}, "Nothing stands out: no score is higher than"),
        ({"fit": ConceptFit(1.2, 0.4)}, "Nothing in this data is shown to have taught it"),
        ({"fit": ConceptFit(0.1, 0.2)}, "Nothing in this data is shown to have taught it"),
    ],
    ids=["groups", "samples", "examples", "noise", "error", "coefficient"],
)
def test_nothing_is_named_out_of_noise(section, changes, text):
    answer = asked(section, **changes)
    assert not answer.clear
    assert answer.text.startswith(text)
    assert "taught it most" not in answer.text


def test_a_lone_example_is_said_to_be_one(section):
    alone = "a lone example cannot be checked against another"
    assert alone in asked(section, examples=1).text
    assert alone in asked(section, examples=1, certainty={"concept_trak": replace(SURE, above_noise=0)}).text
    assert alone not in asked(section, examples=2).text


def test_the_terminal_says_it_too():
    concept = Concept("pictures", examples=("a.png", "b.png"))

    def lines(examples: int, reliability: float) -> str:
        certainty = {"examples": examples, "methods": {"das": {"reliability": reliability}}}
        return "\n".join(concept_lines(concept, ["das", "trak"], [], {}, {}, certainty))

    assert "the 2 examples agree too little with each other to rank by (reliability 0.490)" in lines(2, 0.49)
    assert "agree too little" not in lines(2, 0.5)
    assert "a lone example cannot be checked" in lines(1, 0.9)
    assert "lone" not in lines(2, 0.9)


def test_a_query_of_one_sample_has_no_interval(section):
    assert "one sample of the query gives no interval" in asked(section, certainty={}, fit=None).text


def test_the_page_begins_a_concept_with_its_answer(section):
    shown = replace(section, answers=(asked(section), AnswerInWords("d_trak", False, "Nothing <stands> out.")))
    html = render(replace(page(), sections=(shown,)))
    assert "<b>Nothing &lt;stands&gt; out.</b>" in html
    text = parse(html).text
    assert (
        text.index("Which training images taught")
        < text.index("Images labelled")
        < text.index("The query's own samples")
    )


def test_scores_that_are_all_zero_are_no_answer(section):
    first, *rest = section.rankings
    zero = replace(first, top=(), bottom=(), span=0.0)
    answer = answers(replace(section, rankings=(zero, *rest)), "file:///d")[0]
    assert not answer.clear
    assert "every feature is zero" in answer.text
