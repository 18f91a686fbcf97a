"""The page of an audit as HTML: images and histograms inline, no request, and one script that filters and sorts.

`audit.html` has the structure and the words, `style.html` the style. This module has the computed parts: numbers as
text, the geometry of the drawings, and the choice of a method's main ranking. Captions are untrusted, so everything is
escaped, and the page's content security policy forbids requests, and every script but this one, by its hash.
"""

import base64
import hashlib
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from concept_trak.data.text import escaped
from concept_trak.report.audit_page import Facts, Page, Ranking, Section, Thumb

# Smaller images, in pixels, are enlarged with sharp edges, because smoothing blurs them.
PIXELATED_BELOW = 64
LEGIBLE = 100  # above this ratio of the tallest bar to the shortest, a linear histogram hides its tails
SIFT = (Path(__file__).parent / "sift.js").read_text()
"""The script that filters and sorts the samples of a page."""
STANDS_OUT = 3.0  # standard errors above the mean of all samples, from which a group of samples is named


@dataclass(frozen=True)
class Column:
    """One method's rankings for a concept: the main one, and the others in closed sections below it."""

    method: str
    main: Ranking
    others: tuple[Ranking, ...]
    differs: bool = False
    """Whether the forms share less than half of their tops, so that the others are shown beside the main one."""


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram as a rectangle one bin wide: `height` in percent of the tallest, from the axis up.

    `side` is `above`, `below` or `at` zero.
    """

    bin: int
    height: float
    side: str


# The sources of pictures that the content security policy allows: the page itself, or files of its folder, which some
# browsers match by 'self' and others by file:.
INLINE, BESIDE = "data:", "data: 'self' file:"


def render(page: Page) -> str:
    """The audit `page` as a complete HTML document. Equal pages give equal text."""
    return _TEMPLATE.render(_context(page), base="report/", home="", graded=_graded(page.sections))


def render_concept(page: Page, section: Section) -> str:
    """One concept of a page with `files`, as the document `report/<concept>.html`."""
    return _CONCEPT.render(_context(page), section=section, base="", home="../report.html")


def _context(page: Page) -> dict[str, object]:
    methods = {facts.method for facts in page.facts}
    return {"page": page, "known": methods, "pictures": BESIDE if page.files else INLINE}


def columns(section: Section) -> tuple[Column, ...]:
    """The rankings of `section` by method, in their order; the damped one, if there is one, is the main one."""
    rankings: dict[str, list[Ranking]] = {}
    for ranking in section.rankings:
        rankings.setdefault(ranking.method, []).append(ranking)
    ordered = {method: sorted(rankings, key=lambda r: r.form != "damped") for method, rankings in rankings.items()}
    differing = {overlap.first for overlap in section.overlaps if overlap.differ}
    return tuple(
        Column(method, rankings[0], tuple(rankings[1:]), f"{method}, damped" in differing)
        for method, rankings in ordered.items()
    )


def thumbs(section: Section, ranking: str, samples: Sequence[str]) -> tuple[Thumb, ...]:
    """The shown images of some samples in a ranking, which is named as in `Overlap`."""
    names = {ranking, f"{ranking}, damped"}
    tops = (own.top for own in section.rankings if f"{own.method}, {own.form}" in names)
    return tuple(thumb for top in tops for thumb in top if thumb.sample_id in samples)


def bars(histogram: Sequence[int]) -> tuple[Bar, ...]:
    """The bins that are not empty. Heights are proportional to the counts, or to log(1 + count) if `is_log`."""
    heights = [math.log1p(count) if is_log(histogram) else float(count) for count in histogram]
    tallest = max(heights, default=0.0)
    return tuple(
        Bar(index, round(100 * height / tallest, 3), _side(2 * index + 1 - len(heights)))
        for index, height in enumerate(heights)
        if height > 0
    )


def is_log(histogram: Sequence[int]) -> bool:
    """Whether the counts are too far apart to be seen on a linear axis."""
    filled = [count for count in histogram if count > 0]
    return bool(filled) and max(filled) > LEGIBLE * min(filled)


def tick_position(score: float, ranking: Ranking) -> float:
    """The position of `score` on the axis of `ranking`'s histogram, in bins; scores outside are at the edge."""
    bins = len(ranking.histogram)
    if not ranking.span > 0 or not math.isfinite(score):
        return bins / 2
    return round(min(max((score / ranking.span + 1) * bins / 2, 0.0), float(bins)), 3)


def number(value: float) -> str:
    """Three significant digits: 0.500, 12.3, −4.56e−7; `not finite` for infinity and NaN."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e6:
        return _minus(f"{float(f'{value:.3g}'):,.0f}")
    text = f"{value:#.3g}".rstrip(".")
    return _minus(re.sub(r"e([+-])0*(\d)", lambda exponent: "e" + exponent[1].strip("+") + exponent[2], text))


def ratio(value: float) -> str:
    """A share in [0, 1], or the difference of two, with three decimals."""
    return _minus(f"{value:.3f}") if math.isfinite(value) else "not finite"


def gain(metrics: dict[str, float]) -> str:
    """Average precision minus base rate, with its sign; a random order has 0."""
    above = metrics["average_precision"] - metrics["base_rate"]
    return ("+" if round(above, 3) >= 0 else "") + ratio(abs(above) if round(above, 3) == 0 else above)


def percent(value: float) -> str:
    """A percentile, with so many digits that only the highest of all reads 100."""
    edge = min(value, 100 - value)
    digits = max(1, -math.floor(math.log10(edge))) if edge > 0 else 1
    return f"{value:.{digits}f}"


def below(source: str, data: str) -> str:
    """The address of a source below that of the data set; the name of the file where the data set is one file.

    Args:
        source: the address, perhaps with more text behind it, such as its row.
        data: `data.uri`.
    """
    address, folder = (text.removeprefix("file://") for text in (source, data.rstrip("/")))
    rest = address.removeprefix(folder)
    if not folder or rest == address or rest[:1] not in ("", "/", ","):
        return source
    return rest[1:] if rest.startswith("/") else f"{folder.rpartition('/')[2]}{rest}"


def groups(thumb: Thumb, data: str) -> str:
    """The source and the labels of a sample as JSON pairs of name and value, by which the page filters.

    Args:
        thumb: the sample.
        data: `data.uri`.
    """
    source = below(thumb.origin.rpartition(", row ")[0], data)
    return json.dumps([*([("source", source)] if source else []), *thumb.labels.items()], ensure_ascii=False)


def duration(seconds: float) -> str:
    """Seconds in words: 4.2 s, 12 min 5 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def rate(facts: Facts) -> str:
    """Samples per second of worker time; a dash if no time was measured."""
    return number(facts.samples / facts.seconds) if facts.seconds > 0 else "–"


def damping_chosen(facts: Facts) -> str:
    """The damping, and whether it was chosen or why it could not be."""
    if facts.damping is None:
        return "–"
    chosen = ", chosen" if facts.damping.curve else ""
    return number(facts.damping.damping) + (
        f", the default: {facts.damping.reason}" if facts.damping.reason else chosen
    )


def reused(facts: Facts) -> str:
    """The number of samples whose features an earlier audit computed."""
    return f"{facts.samples - facts.computed:,}"


def inline(png: bytes) -> str:
    """The image as a data URI, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def is_small(png: bytes) -> bool:
    """Whether the image's longer side is under `PIXELATED_BELOW` pixels."""
    return max(_size(png)) < PIXELATED_BELOW


def _size(png: bytes) -> tuple[int, int]:
    # PNG (ISO/IEC 15948, 5.2 and 11.2.2): eight bytes of signature, then the header chunk begins with width and height.
    assert png[:8] == b"\x89PNG\r\n\x1a\n", f"a picture of the page is not a PNG: it begins with {png[:8]!r}"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _graded(sections: Sequence[Section]) -> bool:
    return any(ranking.metrics for section in sections for ranking in section.rankings)


def _side(twice: int) -> str:
    if twice == 0:
        return "at"
    return "above" if twice > 0 else "below"


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def environment() -> Environment:
    """The environment of the templates in this folder, with the filters that they share; everything is escaped."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: escaped(value, "\n\t") if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (
        columns,
        thumbs,
        bars,
        is_log,
        tick_position,
        below,
        groups,
        number,
        ratio,
        gain,
        percent,
        duration,
        rate,
        reused,
        damping_chosen,
        inline,
        is_small,
    )
    jinja.filters.update({function.__name__: function for function in functions})
    digest = base64.b64encode(hashlib.sha256(SIFT.encode()).digest()).decode()
    jinja.globals |= {"STANDS_OUT": STANDS_OUT, "SIFT": Markup(SIFT), "SIFT_HASH": f"sha256-{digest}"}
    jinja.filters["count"] = "{:,}".format
    jinja.filters["yes_or_no"] = lambda value: "yes" if value else "no"
    return jinja


_TEMPLATE = environment().get_template("audit.html")
_CONCEPT = environment().get_template("concept.html")
