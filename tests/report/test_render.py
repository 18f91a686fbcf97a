"""The page says what the audit found, and nothing that is written in the data can change what the page is."""

import base64
import hashlib
import json
import math
import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from numpy import float32

from concept_trak.attribution.damping import DampingChoice, DampingPoint
from concept_trak.audit.aggregate import GroupStatistics
from concept_trak.audit.comparison import Overlap
from concept_trak.audit.layer_scores import Through
from concept_trak.audit.score_spread import Certainty
from concept_trak.report.audit_page import Change, Moved, Page, Ranking, Thumb
from concept_trak.report.damping_chart import agreement_chart
from concept_trak.report.render import LEGIBLE, SIFT, duration, gain, inline, number, percent, render, render_concept
from tests.report import pages
from tests.report.outline import Element, parse

HOSTILE = """<script>alert(1)</script>" onload='x' style="}&amp;{{ 7 * 7 }}</style>"""


@pytest.fixture(scope="module")
def page() -> Page:
    return pages.page()


@pytest.fixture(scope="module")
def document(page: Page) -> Element:
    return parse(render(page))


def with_first(page: Page, ranking: Ranking) -> Page:
    """`page` with one concept and one ranking."""
    return replace(page, sections=(replace(page.sections[0], rankings=(ranking,)),))


def empty_pages() -> dict[str, Page]:
    """Audits that lack something."""
    whole = pages.page(pages.CONCEPTS[:1])
    section, ranking = whole.sections[0], whole.sections[0].rankings[0]
    unlabelled = tuple(replace(thumb, relevant=None, labels={}, caption="") for thumb in ranking.top)
    asked = replace(section, text="", without="", question="what the pictures in red/ share")
    ways = (("a red triangle", "a triangle"), ("crimson", ""))
    concepts = tuple(replace(section, name=f"concept-{i}", rankings=(), pictures=()) for i in range(40))
    return {
        "whole": whole,
        "no concept": replace(whole, sections=()),
        "no ranking": replace(whole, sections=(replace(section, rankings=()),)),
        "no metrics": with_first(whole, replace(ranking, metrics={})),
        "one metric": with_first(whole, replace(ranking, metrics={"precision_at_10": 0.5, "our_own": 0.25})),
        "no images": with_first(whole, replace(ranking, top=(), bottom=())),
        "no pictures of the images": with_first(whole, replace(ranking, top=(replace(ranking.top[0], png=b""),))),
        "no labels, no captions": with_first(whole, replace(ranking, top=unlabelled, metrics={})),
        "only zeros": with_first(whole, replace(ranking, histogram=(0,) * 80, span=0.0)),
        "no histogram": with_first(whole, replace(ranking, histogram=())),
        "only plain": with_first(whole, replace(ranking, form="plain")),
        "a method nobody describes": with_first(whole, replace(ranking, method="from_elsewhere")),
        "one image": replace(whole, sections=(replace(section, scope="local", pictures=section.pictures[:1]),)),
        "no pictures, no truth": replace(whole, sections=(replace(section, pictures=(), truth={}, without=""),)),
        "by examples": replace(whole, sections=(replace(asked, kind="examples"),)),
        "by a classifier": replace(whole, sections=(replace(asked, kind="classifier"),)),
        "in other words": replace(
            whole, sections=(replace(section, written=ways, agreement={"concept_trak": (0.5, -0.25)}),)
        ),
        "forty concepts": replace(whole, sections=concepts),
        "nothing at all": replace(whole, sections=(), facts=(), rejects={}, settings={}),
    }


@pytest.mark.parametrize("name", empty_pages())
def test_every_page_is_sound(name: str) -> None:
    page = empty_pages()[name]
    document = parse(render(page))
    ids = [element.attributes["id"] for element in document.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids)), f"an id stands twice, so an anchor leads to the wrong place: {sorted(ids)}"
    anchors = [link.attributes["href"] for link in document.all("a")]
    assert {anchor[1:] for anchor in anchors} <= set(ids), "a link leads nowhere"
    for section in page.sections:
        assert f"#concept-{section.name}" in anchors, f"{section.name} cannot be reached"
    levels = [int(element.tag[1]) for element in document.all() if re.fullmatch("h[1-6]", element.tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels)), f"a level is left out: {levels}"
    assert all(image.attributes.get("alt") for image in document.all("img")), (
        "an image without words for who cannot see it"
    )
    assert [element.tag for element in document.all() if element.tag in ("header", "nav", "main", "footer")]
    assert not re.search(r"\b(nan|inf|none|undefined)\b", document.all("body")[0].text, re.IGNORECASE)


def test_nothing_is_fetched_and_one_script_runs(document: Element) -> None:
    for element in document.all():
        assert element.tag not in ("iframe", "object"), f"<{element.tag}> in a page that needs none"
        assert not [name for name in element.attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            assert re.match(r"#|data:|$", element.attributes.get(name, "")), f"{name} leads out of the page"
        assert "url(" not in element.attributes.get("style", "")
    style = document.all("style")[0].text
    assert not re.search(r"url\(|@import|https?:|//", style), "the style fetches something"
    policy = next(meta for meta in document.all("meta") if "http-equiv" in meta.attributes).attributes["content"]
    (script,) = document.all("script")
    digest = base64.b64encode(hashlib.sha256("".join(map(str, script.children)).encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"https?:|//[^ ]|fetch|eval|innerHTML|import", SIFT), "the script does more than sort"


def test_what_is_written_in_the_data_stays_text(page: Page) -> None:
    section, ranking = page.sections[0], page.sections[0].rankings[0]
    thumb = replace(ranking.top[0], caption=HOSTILE, sample_id=HOSTILE, labels={HOSTILE: HOSTILE})
    hostile = replace(
        with_first(page, replace(ranking, top=(thumb,), bottom=(thumb,))), model=HOSTILE, settings={HOSTILE: HOSTILE}
    )
    shown = replace(hostile.sections[0], text=HOSTILE, without=HOSTILE, truth={HOSTILE: HOSTILE})
    document = parse(render(replace(hostile, sections=(shown,), rejects={HOSTILE: 1})))
    assert [script.text for script in document.all("script")] == [" ".join(SIFT.split())], (
        "a caption became a script: autoescape is off somewhere"
    )
    images = [image for image in document.all("img") if image.inside("li")]
    assert {image.attributes["alt"] for image in images} == {HOSTILE}
    assert {image.attributes["title"] for image in images} == {HOSTILE}
    expected = " ".join(HOSTILE.split())
    assert [caption.text for caption in document.all("span", "caption")] == [expected] * 2
    assert document.all("h2")[2].text == section.name


def light(page: Page) -> Page:
    """The same with every picture as a file, with groups and changes."""

    def as_file(thumb: Thumb) -> Thumb:
        name = f"{thumb.sample_id}.png"
        return replace(thumb, png=b"", file=f"thumbnails/{name}", original=f"originals/{name}", small=True)

    def ends(ranking: Ranking) -> Ranking:
        groups = {kind: (GroupStatistics(HOSTILE, 1234, 0.5, 0.25, 3.0),) for kind in ("source", "label", "word")}
        top, bottom = (tuple(map(as_file, some)) for some in (ranking.top, ranking.bottom))
        return replace(ranking, top=top, bottom=bottom, groups=groups)

    moved = (Moved(HOSTILE, HOSTILE, None, 1, "new"), Moved("x", "", 2, None, "removed"))
    changes = (
        Change("concept_trak", 1, 1, 23, 0.125, 0.0, 0.9994, moved),
        Change("d_trak", 0, 0, 1, 0.0, 0.0, None, ()),
    )
    sections = tuple(
        replace(s, rankings=tuple(map(ends, s.rankings)), pictures=(), files=("queries/a.png",), changes=changes)
        for s in page.sections
    )
    return replace(page, sections=sections, since="last-week", files=True)


def test_a_light_page_names_files_beside_it_and_no_other_place(page: Page) -> None:
    shown = light(page)
    documents = [parse(render(shown)), *(parse(render_concept(shown, section)) for section in shown.sections)]
    for document, folder in zip(documents, ("report/", "", "", ""), strict=True):
        named = [e.attributes[n] for e in document.all() for n in ("src", "href") if n in e.attributes]
        inside = re.compile(
            rf"#|data:,|{folder}(thumbnails|originals|queries)/|(report/)?\w+\.html$|\.\./(index|report)\.html"
        )
        assert [name for name in named if not inside.match(name)] == [], "a page names what is not beside it"
        policy = next(m for m in document.all("meta") if "http-equiv" in m.attributes).attributes["content"]
        assert policy.startswith("default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'")
        assert ("script-src" in policy) == bool(document.all("script")) == (folder == ""), "an overview needs no script"
        pictures = [image for image in document.all("img") if image.inside("li")]
        assert pictures
        assert all(image.attributes["loading"] == "lazy" and "small" in image.classes for image in pictures)
        assert all(image.inside("a") for image in pictures), "an original that cannot be reached"
        ids = [element.attributes["id"] for element in document.all() if "id" in element.attributes]
        assert len(ids) == len(set(ids))
    assert len(documents[0].all("img")) == 8 * len(shown.sections), "the overview is to be light"


def test_groups_and_changes_stand_on_the_page_as_text(page: Page) -> None:
    shown = light(page)
    for document in (parse(render_concept(shown, shown.sections[0])), parse(render(replace(shown, files=False)))):
        assert len(document.all("script")) == 1
        text, hostile = document.text, " ".join(HOSTILE.split())
        assert "Since last-week" in text
        assert "concept_trak: 1 entered the top, 1 left it, 23 stayed. 12.5 % of the top is new data" in text
        assert "The queries cannot be compared" in text
        assert f"Which source taught it: {hostile}" in text
        rows = [[cell.text for cell in row.all() if cell.tag in ("td", "th")] for row in document.all("tr")]
        assert [hostile, "1,234", "0.500", "25.0 %", "3.00"] in rows
        assert [hostile, "–", "1", "new", hostile] in rows
        assert ["x", "2", "–", "removed", ""] in rows


def test_where_features_keep_layers_apart_the_page_says_through_which_it_came(page: Page) -> None:
    first = page.sections[0].rankings[0]
    parts = (Through("mid_block", 3.0, 1.5), Through(HOSTILE, -1.0, -0.5))
    top = (replace(first.top[0], through=parts[:1]),)
    document = parse(render(with_first(page, replace(first, top=top, bottom=(), through=parts))))
    (summary,) = [e.text for e in document.all("summary") if e.text.startswith("Through")]
    assert summary == "Through which layers: most through mid_block"
    rows = [[cell.text for cell in row.all() if cell.tag in ("td", "th")] for row in document.all("tr")]
    assert ["mid_block", "", "150 %", "3.00"] in rows
    assert [" ".join(HOSTILE.split()), "", "−50.0 %", "−1.00"] in rows
    assert any(row[-1] == "mid_block 150 %" for row in rows), "an image is without its own"
    assert "Through which" not in render(page), "an audit whose projector mixes layers has nothing to say here"


def test_every_image_stands_with_its_numbers(page: Page, document: Element) -> None:
    thumbs = [
        thumb
        for section in page.sections
        for ranking in section.rankings
        for thumb in ranking.top + ranking.bottom
    ]  # fmt: skip
    items = document.all("li")[-len(thumbs) :]
    for item, thumb in zip(items, thumbs, strict=True):
        image = item.all("img")[0]
        assert image.attributes["src"] == inline(thumb.png), "another image's picture: are the lists in another order?"
        assert image.attributes["alt"] == thumb.caption
        assert "small" in image.classes, "a picture of 32 pixels would be blurred"
        words = f"rank {thumb.rank} {'shows' if thumb.relevant else 'does not show'} the concept"
        assert item.text == f"{words} {number(thumb.score)} percentile {percent(thumb.percentile)} % {thumb.caption}"


def test_the_page_filters_by_what_is_known_of_each_image(page: Page) -> None:
    first = page.sections[0].rankings[0].top[0]
    known = replace(first, origin="/data/train/a.parquet, row 12", interval=(0.1, 0.9, 3, 2000), labels={"a": HOSTILE})
    shown = replace(
        with_first(page, replace(page.sections[0].rankings[0], top=(known,), bottom=())), data="/data/train"
    )
    document = parse(render(shown))
    (item,) = [item for item in document.all("li") if "data-groups" in item.attributes]
    values = {name.removeprefix("data-"): value for name, value in item.attributes.items()}
    assert json.loads(values.pop("groups")) == [["source", "a.parquet"], ["a", HOSTILE]]
    assert values == {"rank": "1", "certain": "2000", "id": first.sample_id, "source": "a.parquet, row 12"}
    assert "3 to 2,000" in item.text
    (tools,) = document.all("div", "tools")
    assert "hidden" in tools.attributes, "what does nothing without a script is not shown without one"
    assert len(tools.all("label")) == len([e for e in tools.all() if e.tag in ("input", "select")]) == 3


def test_the_table_has_the_scores_to_the_last_digit_of_a_float32(page: Page, document: Element) -> None:
    first = page.sections[0].rankings[0]
    rows = document.all("table", "plain")[0].all("tbody")[0].all("tr")
    shown = [[cell.text for cell in row.all() if cell.tag in ("td", "th")] for row in rows]
    assert [row[2] for row in shown] == [thumb.sample_id for thumb in first.top + first.bottom]
    assert [float32(row[3]) for row in shown] == [float32(thumb.score) for thumb in first.top + first.bottom]


def test_the_summary_has_every_concept_and_method(page: Page, document: Element) -> None:
    bodies = document.all("table", "graded")[0].all("tbody")
    for body, section in zip(bodies, page.sections, strict=True):
        assert body.all("a")[0].attributes["href"] == f"#concept-{section.name}"
        rows = body.all("tr")[1:]
        damped = [ranking for ranking in section.rankings if ranking.form == "damped"]
        for row, ranking in zip(rows, damped, strict=True):
            m = ranking.metrics
            numbers = [m[k] for k in ("average_precision", "base_rate", "precision_at_10", "recall_at_carriers")]
            cells = [cell.text for cell in row.all("td", "n")]
            assert row.all("th")[0].text == ranking.method
            assert cells == [gain(m), *(f"{value:.3f}" for value in numbers)]
            above, stroke = row.all("rect", "above")[0], row.all("rect", "base")[0]
            ends = float(above.attributes["x"]), float(above.attributes["x"]) + float(above.attributes["width"])
            assert ends == pytest.approx((100 * m["base_rate"], 100 * m["average_precision"]), abs=0.02)
            assert float(stroke.attributes["x"]) + 0.4 == pytest.approx(100 * m["base_rate"], abs=0.02)


def test_a_method_that_is_worse_than_chance_is_not_drawn_as_a_success(page: Page) -> None:
    ranking = replace(page.sections[0].rankings[0], metrics={"average_precision": 0.1, "base_rate": 0.3})
    document = parse(render(with_first(page, ranking)))
    assert [cell.text for cell in document.all("table", "graded")[0].all("b")] == ["−0.200"]
    assert len(document.all("rect", "below")) >= 1
    assert not [rect for rect in document.all("table", "graded")[0].all("rect", "above")]


def test_the_damped_answer_is_open_and_the_plain_one_folded_away(page: Page, document: Element) -> None:
    articles = document.all("article")
    assert len(articles) == sum(len(section.rankings) for section in page.sections) // 2
    for article in articles:
        titles = [
            (svg.all("title")[0].text.split(", ")[-1], svg.inside("details")) for svg in article.all("figure", "spread")
        ]
        assert titles == [("damped", False), ("plain", True)]


@pytest.mark.parametrize("largest", [LEGIBLE, LEGIBLE + 1, 10**9])
def test_the_bars_are_as_high_as_the_counts(page: Page, largest: int) -> None:
    counts = (1, 0, 7, largest, 40, 0, 3, 1)
    ranking = replace(page.sections[0].rankings[0], histogram=counts, span=2.0, bottom=())
    figure = parse(render(with_first(page, ranking))).all("figure", "spread")[0]
    bars = {math.floor(float(bar.attributes["x"])): bar for bar in figure.all("rect", "bar")}
    assert sorted(bars) == [index for index, count in enumerate(counts) if count], "a bar is in another bin's place"
    drawn = math.log1p if largest > LEGIBLE else float
    for index, bar in bars.items():
        height = float(bar.attributes["height"])
        assert height == pytest.approx(100 * drawn(counts[index]) / drawn(largest), abs=1e-3)
        assert float(bar.attributes["y"]) + height == pytest.approx(100, abs=1e-3), "the bar does not stand on the axis"
        assert bar.classes == ["bar", "below" if index < 4 else "above"]
    assert ("logarithmic" in figure.text) == (largest > LEGIBLE), "the axis is not what it says"
    ticks = [float(x) for x in re.findall(r"M([\d.]+)", figure.all("path", "ticks")[0].attributes["d"])]
    assert ticks == pytest.approx([min(8, (thumb.score / 2 + 1) * 4) for thumb in ranking.top], abs=1e-3)


def test_equal_pages_give_equal_text() -> None:
    assert render(pages.page()) == render(pages.page())


def test_numbers_say_what_they_were() -> None:
    rng = random.Random(0)
    for _ in range(500):
        value = rng.choice((-1, 1)) * 10 ** rng.uniform(-12, 12)
        shown = float(number(value).replace("−", "-").replace(",", ""))
        assert shown == pytest.approx(value, rel=0.005), f"{value!r} is shown as {number(value)}"
    assert [number(value) for value in (0.0, 0.5, -12.34, 123.4, 26973.0, -4.56e-7)] == [
        "0", "0.500", "−12.3", "123", "27,000", "−4.56e−7"
    ]  # fmt: skip
    assert number(math.nan) == "not finite", "what is no number must not look like a score"


def test_only_the_highest_of_all_reads_100() -> None:
    for power in range(1, 10):
        assert float(percent(100 - 10.0**-power)) < 100
        assert float(percent(10.0**-power)) > 0
    assert (percent(100.0), percent(0.0), percent(50.0), percent(99.97)) == ("100.0", "0.0", "50.0", "99.97")


def test_durations_and_gains_carry_their_unit_and_sign() -> None:
    assert [duration(seconds) for seconds in (4.21, 59.99, 725.0, 11_520.0, 4e6)] == [
        "4.2 s", "60.0 s", "12 min 5 s", "3 h 12 min", "1,111 h 6 min"
    ]  # fmt: skip
    shown = [gain({"average_precision": ap, "base_rate": 0.5}) for ap in (0.75, 0.5, 0.49999, 0.25)]
    assert shown == ["+0.250", "+0.000", "+0.000", "−0.250"]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_word_can_be_read(document: Element, scheme: int) -> None:
    """Contrast of WCAG 2.2, 1.4.3 and 1.4.11: at least 4.5 for text and 3 for drawings."""
    colours = [
        dict(re.findall(r"--(\w+): #(\w{6})", rule)) for rule in document.all("style")[0].text.split(":root")[1:]
    ]
    light = {name: luminance(colour) for name, colour in colours[scheme].items()}
    for name, least in (("ink", 4.5), ("muted", 4.5), ("accent", 4.5), ("quiet", 3.0)):
        low, high = sorted((light[name], light["paper"]))
        assert (high + 0.05) / (low + 0.05) >= least, f"{name} on paper is too faint"


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour `rrggbb` (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("errors", "named"),
    [((2.9, 1.0), "none stands out"), ((3.1, 2.9), "a.parquet"), ((9.0, 3.0), "a.parquet before b.parquet")],
)
def test_a_group_is_named_from_three_standard_errors_on(page, errors, named):
    groups = {
        "source": tuple(
            GroupStatistics(n, 9, 0.5, 0.2, e) for n, e in zip(("a.parquet", "b.parquet"), errors, strict=True)
        )
    }
    text = parse(render(with_first(page, replace(page.sections[0].rankings[0], groups=groups)))).text
    assert f"Which source taught it: {named}" in text
    assert ("before b.parquet" in text) == named.endswith("b.parquet")


def test_what_the_samples_and_the_rankings_disagree_about_is_said(page):
    doubtful = replace(
        page.sections[0],
        certainty={
            "concept_trak": Certainty(reliability=0.31, of=24, shared=3, by_chance=0.2, above_noise=24),
            "d_trak": Certainty(reliability=0.93, of=24, shared=20, by_chance=0.2, above_noise=24),
        },
        overlaps=(Overlap("concept_trak, damped", "concept_trak, plain", 3, 24), Overlap("a", "b", 12, 24)),
    )
    text = parse(render(replace(page, sections=(doubtful,)))).text
    assert text.count("agree too little to rank by") == 1
    assert "The reliability of its scores is 0.930" in text
    assert "Of the first 24, 20 are first by either half (0.200 by chance), and 24 score higher" in text
    assert "concept_trak, damped and concept_trak, plain share 3 of their first 24: they give different answers" in text
    assert text.count("they give different answers") == 1


def test_what_one_method_finds_alone_is_listed_and_forms_that_differ_are_side_by_side(page):
    section = page.sections[0]
    first, second = section.rankings[0].method, next(r.method for r in section.rankings if r.method != "concept_trak")
    assert first == "concept_trak"
    forms = {ranking.form: ranking for ranking in section.rankings if ranking.method == first}
    assert set(forms) == {"damped", "plain"}
    alone = tuple(thumb.sample_id for thumb in forms["damped"].top[:2])

    def document(shared: int):
        overlaps = (
            Overlap(f"{first}, damped", f"{first}, plain", shared, 4),
            Overlap(first, second, 2, 4, correlation=-0.25, sampled=1000, only_first=alone),
        )
        return parse(render(replace(page, sections=(replace(section, overlaps=overlaps),))))

    alike, unlike = document(2), document(1)
    assert "The ranks of 1,000 samples correlate to −0.250 (Spearman)" in alike.text
    assert f"By {first} alone: 2 of its first 4" in alike.text
    regions = [
        e for e in alike.all("div") if e.attributes.get("aria-label", "").startswith(f"Found by {first} and not")
    ]
    (table,) = regions
    assert [row.all("th")[0].text for row in table.all("tbody")[0].all("tr")] == list(alone)
    assert len(unlike.all("article")) == len(alike.all("article")) + 1
    assert f"{first} (plain, without K)" in unlike.text
    assert f"{first} (plain, without K)" not in alike.text


def test_a_chosen_damping_is_shown_with_its_curve(page):
    curve = (DampingPoint(1.0, 0.5, 0.25, ()), DampingPoint(100.0, 0.875, 0.125, ()))
    chosen, default = DampingChoice(100.0, curve), DampingChoice(100.0, reason="there is one concept")
    facts = tuple(replace(f, damping=d) for f, d in zip(page.facts, (chosen, default), strict=False))
    chart = agreement_chart({"concept_trak": chosen, "d_trak": default})
    document = parse(render(replace(page, facts=facts, damping_chart=chart)))
    text = document.text
    assert "100, chosen" in text
    assert "100, the default: there is one concept" in text
    assert "concept_trak: 0.88 within, 0.12 between" in text
    assert agreement_chart({"d_trak": default}) is None
    heights = [y for _, y in chart.curves[0].points]
    assert heights[0] > heights[1], "more agreement is drawn higher"


@pytest.mark.parametrize(
    ("data", "source", "shown"),
    [
        ("/data/train", "file:///data/train/x/a.parquet", "x/a.parquet"),
        ("file:///data/train/", "file:///data/train/a.parquet", "a.parquet"),
        ("/data/train/a.parquet", "file:///data/train/a.parquet", "a.parquet"),
        ("s3://bucket/train", "s3://bucket/train/a.tar", "a.tar"),
        ("s3://bucket/train", "s3://bucket/training/a.tar", "s3://bucket/training/a.tar"),
        ("", "file:///data/train/a.parquet", "file:///data/train/a.parquet"),
    ],
)
def test_a_source_is_shown_below_the_data_with_its_whole_address_as_title(page, data, source, shown):
    groups = {"source": (GroupStatistics(source, 9, 0.5, 0.2, 9.0),)}
    thumb = replace(page.sections[0].rankings[0].top[0], origin=f"{source}, row 7")
    ranking = replace(page.sections[0].rankings[0], groups=groups, top=(thumb,))
    document = parse(render(replace(with_first(page, ranking), data=data)))
    (row,) = [cell for cell in document.all("th") if cell.attributes.get("title") == source]
    assert row.text == shown
    assert f"Which source taught it: {shown}" in " ".join(document.text.split())
    (origin,) = [span for span in document.all("span") if span.attributes.get("title") == f"{source}, row 7"]
    assert origin.text == f"{shown}, row 7"
