"""The page of an inquiry: what is drawn stands where the numbers say, and nothing that is written in can change it."""

import re
from itertools import pairwise

import pytest
import torch

from concept_trak.attribution.by_layer import block_of
from concept_trak.components.dose_response import sheet, strips
from concept_trak.data.image import decode, to_tensor
from concept_trak.report.components_page import (
    Arm,
    Holder,
    Inquiry,
    Layer,
    Look,
    Row,
    Trial,
    bar,
    cloud,
    curve,
    labels,
    render_inquiry,
)
from concept_trak.report.render import inline
from tests.report.outline import parse
from tests.report.pages import draw
from tests.report.test_render import HOSTILE

LAYERS = (Layer("mid_block.a", 4, 0.3, 0.1), Layer(HOSTILE, 5, -0.2), Layer("b", 6, 0.0, 0.0))


def page(name: str = "red") -> Inquiry:
    import random

    rng = random.Random(0)
    looks = (Look(name, (0.9, 0.1), True, True), Look("green", (1.0, 0.99), False, True),
             Look("circle", (1.0, 0.97), False, False))  # fmt: skip
    arms = (Arm("alpha", (0.0, 0.01), (0, 1234), looks), Arm("random", (0.0, 0.01), (0, 1234), looks))
    rows = tuple(Row(c, c.startswith("a red"), (draw("circle", "red", rng), draw("circle", "blue", rng)))
                 for c in ("a red circle", HOSTILE))  # fmt: skip
    trials = (Trial(0.01, -1.0, 0.5, 2.0), Trial(0.1, 0.5, -1.0, 0.0))
    pearson = {what: {"0.01": 0.25, "all": -0.5} for what in ("frozen", "recomputed")}
    whole = Holder(name, (("a red circle", "a circle"), (HOSTILE, "")), 0.02, 0.1, 4, 36, LAYERS, LAYERS[:1], arms,
                   ("as it is", "1,234 changed"), rows, trials, pearson)  # fmt: skip
    bare = Holder("bare", (("x", ""),), 0.0, 0.0, 1, 9, LAYERS, LAYERS)
    return Inquiry("one", HOSTILE, "erase", 1000, "global", (whole, bare))


def test_the_page_is_sound_and_what_is_written_stays_text():
    document = parse(render_inquiry(page()))
    assert not document.all("script"), "a caption became a script: autoescape is off somewhere"
    ids = [e.attributes["id"] for e in document.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids)), "an id stands twice, so an anchor leads to the wrong place"
    assert {link.attributes["href"][1:] for link in document.all("a")} <= set(ids), "a link leads nowhere"
    for element in document.all():
        for name in ("src", "href"):
            assert re.match(r"#|data:|$", element.attributes.get(name, "")), f"{name} leads out of the page"
    levels = [int(e.tag[1]) for e in document.all() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels)), f"a level is left out: {levels}"
    assert not re.search(r"\b(nan|inf|none|undefined)\b", document.all("main")[0].text.replace("none 1,234", ""), re.I)
    assert render_inquiry(page()) == render_inquiry(page()), "equal inquiries give different text"


def test_every_picture_stands_beside_its_prompt_in_its_column():
    holder = page().holders[0]
    rows = parse(render_inquiry(page())).all("table", "drawn")[0].all("tbody")[0].all("tr")
    for element, row in zip(rows, holder.rows, strict=True):
        assert [image.attributes["src"] for image in element.all("img")] == [inline(s) for s in row.strips]
        assert ("own" in element.classes) == row.target, "the prompts that name the concept are not told apart"


def test_curves_and_bars_lie_where_the_numbers_say():
    assert curve(Look("red", (1.0, 0.25, 0.0), True, True)) == [(0, 0), (50, 75), (100, 100)]
    assert curve(Look("red", (0.5,), True, True)) == [(0, 50)]
    assert bar(LAYERS[0], LAYERS) == {"x": 50, "width": 37.5, "a": 75, "b": 100}
    assert bar(LAYERS[1], LAYERS) == {"x": 25, "width": 25, "a": 25, "b": 25}
    assert bar(LAYERS[2], (LAYERS[2],)) == {"x": 50, "width": 0, "a": 50, "b": 50}
    trials = page().holders[0].trials
    assert cloud(trials, "frozen") == [(2, 26, 0), (74, 98, 1)]
    assert cloud(trials, "recomputed") == [(2, 2, 0), (74, 50, 1)]


@pytest.mark.parametrize("ends", [(1.0,) * 6, (0.0,) * 6, (1.0, 0.99, 0.5, 0.01, 0.0, 0.0)])
def test_names_of_curves_never_lie_on_each_other_nor_outside(ends):
    looks = tuple(Look(str(i), (p,), i == 0, True) for i, p in enumerate(ends))
    places = sorted(labels(Arm("alpha", (0.0,), (0,), looks)).values())
    assert all(b - a >= 8.999 for a, b in pairwise(places)), places
    assert 0 <= places[0] <= places[-1] <= 100


def test_blocks():
    assert block_of("up_blocks.1.attentions.0.to_q.weight") == "up_blocks.1"
    assert (block_of("mid_block.resnets.0.conv1.weight"), block_of("conv_in.bias")) == ("mid_block", "conv_in")


def test_a_sheet_falls_into_its_strips():
    pictures = {pair: torch.rand(3, 3, 8, 8).round() * 2 - 1 for pair in (("a", "x"), ("a", "y"))}
    for data, row in zip(strips(sheet(pictures), 2), pictures.values(), strict=True):
        assert torch.equal(to_tensor(decode(data)), torch.cat(list(row), 2)), "another pair's pictures"
