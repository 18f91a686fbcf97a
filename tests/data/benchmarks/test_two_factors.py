"""What the benchmark's sets show and say: nothing held out, as many wrong captions as asked for, real handwriting."""

import functools
import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from concept_trak.data.benchmarks import drawing
from concept_trak.data.benchmarks.synthetic import arrays, draw_labelled, labels_of, write_synthetic
from concept_trak.data.benchmarks.two_factors import DIGITS, SETS, SHAPES2, SHAPES3, SYNONYMS, TWO_SHAPES
from jobs.shapes import ShapesConfig, shapes

SMALL = 8  # pixels: the pairs do not depend on the side, and a small drawing is cheap
MANY = 1000
DEVIATIONS = 4.5  # standard deviations of a binomial count, exceeded by chance once in 150 000 such tests

# test_emoji.py and test_captions_as_they_are.py have the others
DRAWN = {name: kinds for name, kinds in SETS.items() if kinds.look == "colour" and kinds not in (SYNONYMS, TWO_SHAPES)}

every_set = pytest.mark.parametrize("kinds", DRAWN.values(), ids=DRAWN)


@functools.cache
def many(kinds, wrong=0.0):
    return [draw_labelled(5, index, kinds, SMALL, wrong) for index in range(MANY)]


def rows_of(folder, kinds, rows, **how):
    return [
        row
        for path in write_synthetic(folder, rows, 3, kinds, files=2, **how)
        for row in pq.read_table(path).to_pylist()
    ]


@every_set
def test_exactly_the_held_out_pairs_never_occur(kinds):
    possible = set(itertools.product(kinds.things, kinds.looks))
    assert set(kinds.held_out) < possible, "nothing is held out, or something that cannot be"
    for wrong in (0.0, 0.5):
        drawn = many(kinds, wrong)
        assert {d.image_pair for d in drawn} == possible - set(kinds.held_out)
        assert {d.caption_pair for d in drawn} == possible - set(kinds.held_out), (
            "training would hear of a held-out pair"
        )
    assert {d.image_pair for d in many(kinds.whole())} == possible


def test_every_known_pair_can_be_held_out():
    kinds = replace(SHAPES3, held_out=(("square", "blue"), ("circle", "red")))
    assert set(kinds.all_pairs) - {d.image_pair for d in many(kinds)} == {("square", "blue"), ("circle", "red")}


def test_a_held_out_pair_that_is_none_is_refused():
    with pytest.raises(
        AssertionError, match=r"held_out=\[\('triangle', 'pink'\)\] is no combination; expected some of .*"
    ):
        replace(SHAPES2, held_out=(("triangle", "pink"),))
    with pytest.raises(AssertionError, match="is no combination"):
        replace(DIGITS, held_out=(("red", "three"),))


@every_set
def test_the_share_of_wrong_captions_is_the_one_asked_for(kinds):
    share = 0.2
    mistaken = [d for d in many(kinds, share) if d.caption_pair != d.image_pair]
    spread = math.sqrt(MANY * share * (1 - share))
    assert abs(len(mistaken) - MANY * share) < DEVIATIONS * spread, (
        f"{len(mistaken)} of {MANY} captions are wrong: perhaps 'another pair' can be the pair itself"
    )
    per_pair = len(mistaken) / len(kinds.pairs)
    for pair in kinds.pairs:
        said = sum(d.caption_pair == pair for d in mistaken)
        assert abs(said - per_pair) < DEVIATIONS * math.sqrt(per_pair), f"wrong captions prefer or avoid {pair}"
    assert {d.caption_pair for d in mistaken} == set(kinds.pairs)
    assert all(d.caption_pair == d.image_pair for d in many(kinds))


@every_set
def test_shuffled_captions_say_nothing_about_their_image(kinds):
    """With probability 1 - 1/n of another pair's caption, each of the n is said as often of every image."""
    drawn = many(kinds, 1 - 1 / len(kinds.pairs))
    for shown in kinds.pairs[:3]:
        told = [d.caption_pair for d in drawn if d.image_pair == shown]
        for said in kinds.pairs:
            expected = len(told) / len(kinds.pairs)
            assert abs(told.count(said) - expected) < DEVIATIONS * math.sqrt(expected), f"{shown} tends to be {said}"


@every_set
def test_captions_leave_out_the_factor_that_is_to_be_unsaid(kinds, tmp_path):
    whole, part = (rows_of(tmp_path / (name or "whole"), kinds, 20, unsaid=name) for name in ("", "colour"))
    assert [row["caption"] for row in part] == [f"a {row[kinds.factor]}" for row in whole]
    keep = {"id", "image", kinds.factor, "colour"}
    assert [{k: row[k] for k in keep} for row in part] == [{k: row[k] for k in keep} for row in whole]
    with pytest.raises(ValueError, match=rf"unsaid='size' is no factor of {kinds.name}; expected {kinds.factor} or"):
        write_synthetic(tmp_path / "wrong", 4, 0, kinds, unsaid="size")


@every_set
def test_each_caption_leaves_out_one_factor_by_a_coin_of_its_own(kinds, tmp_path):
    whole, part = (rows_of(tmp_path / (name or "whole"), kinds, 60, unsaid=name) for name in ("", "each"))
    for row, full in zip(part, whole, strict=True):
        thing, look = row[f"said_{kinds.factor}"], row["said_colour"]
        assert {name: row[name] for name in full} == full | {"caption": row["caption"]}
        assert (thing, look) in ((full[kinds.factor], ""), ("", full["colour"]))
        assert row["caption"] == (f"a {thing}" if thing else look)
    count = sum(row["said_colour"] == "" for row in part)
    assert abs(count - 30) < DEVIATIONS * math.sqrt(15)
    assert rows_of(tmp_path / "start", kinds, 20, unsaid="each") == part[:20], (
        "the coin of an image depends on how many are drawn"
    )


@every_set
def test_wrong_captions_leave_the_images_alone(kinds, tmp_path):
    right, wrong = (rows_of(tmp_path / str(share), kinds, 60, wrong=share) for share in (0.0, 0.2))
    assert [r["image"] for r in right] == [r["image"] for r in wrong], "the caption is drawn from the image's numbers"
    assert [r["id"] for r in right] == [r["id"] for r in wrong]
    assert [r["caption"] for r in right] != [r["caption"] for r in wrong]


@every_set
def test_columns_say_what_is_shown_and_what_is_said(kinds, tmp_path):
    factor = "digit" if kinds is DIGITS else "shape"
    right, wrong = (rows_of(tmp_path / str(share), kinds, 40, wrong=share) for share in (0.0, 0.5))
    assert set(right[0]) == {"id", "image", "caption", factor, "colour"}, "nobody asked for what the captions say"
    assert set(wrong[0]) == set(right[0]) | {f"said_{factor}", "said_colour"}
    for plain, row in zip(right, wrong, strict=True):
        assert row["caption"] == f"a {row['said_colour']} {row[f'said_{factor}']}"
        assert plain["caption"] == f"a {plain['colour']} {plain[factor]}"
        assert (row[factor], row["colour"]) == (plain[factor], plain["colour"]), (
            "what an image shows is not its caption"
        )
    assert labels_of(kinds) == (factor, "colour")
    assert labels_of(kinds, 0.1) == (factor, "colour", f"said_{factor}", "said_colour")


@every_set
def test_a_row_is_the_same_whatever_the_range(kinds, tmp_path):
    whole = rows_of(tmp_path / "whole", kinds, 30, wrong=0.3)
    part = rows_of(tmp_path / "part", kinds, 11, wrong=0.3, first=13)
    assert whole[13:24] == part, "an image or its caption hangs on its place among the others"
    assert [row["id"] for row in whole] == [f"{kinds.factor}s-{index:06d}" for index in range(30)]
    images, drawn = arrays(3, 13, 11, kinds, wrong=0.3)
    again = np.stack([np.asarray(d.image) for d in (draw_labelled(3, 13 + i, kinds, wrong=0.3) for i in range(11))])
    assert np.array_equal(images, again.transpose(0, 3, 1, 2))
    assert [(d.id, d.caption) for d in drawn] == [(row["id"], row["caption"]) for row in part]


def flattened(fields: np.ndarray) -> np.ndarray:
    """Fields [n, side, side] without what a plane explains (the background's gradient), as unit vectors."""
    side = fields.shape[-1]
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    planes = np.linalg.qr(np.stack([np.ones(side * side), x.ravel(), y.ravel()], 1))[0]
    rows = fields.reshape(len(fields), -1)
    rows = rows - rows @ planes @ planes.T
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stamps(ink: np.ndarray, side: int, resolution: int) -> np.ndarray:
    """A scan at every place it can have, `[places, resolution, resolution]`."""
    scan = np.asarray(Image.fromarray(np.uint8(255 * ink / 16)).resize((side, side), Image.Resampling.BICUBIC))
    room = resolution - side + 1
    places = np.zeros((room * room, resolution, resolution))
    for i, (top, left) in enumerate(itertools.product(range(room), repeat=2)):
        places[i, top : top + side, left : left + side] = scan
    return places


def test_a_digit_is_one_of_the_real_scans_of_that_digit():
    """Of all 1,797 scans at all places, the one that explains the image best is one of that digit, and explains it."""
    found, side = load_digits(), 14
    known = np.concatenate([stamps(ink, side, 16) for ink in found.images])
    target = np.repeat(found.target, len(known) // len(found.target))
    known, used = flattened(known), set()
    for index in range(40):
        drawn = draw_labelled(0, index, DIGITS)
        digit, colour = drawn.image_pair
        dark = [i for i, name in enumerate(("red", "green", "blue")) if name != colour]  # where ink differs from paper
        seen = flattened(np.asarray(drawn.image).astype(float)[:, :, dark].mean(2)[None])
        likeness = -(known @ seen[0])
        best = int(likeness.argmax())
        assert likeness[best] > 0.995, f"{drawn.id} is none of the scans, best likeness {likeness[best]:.3f}"
        assert drawing.DIGITS[target[best]] == digit, f"{drawn.id} is called {digit} and is a scan of another digit"
        used.add(best)
    assert len(used) > 35, "the scans and places are hardly varied"


def test_the_ink_has_the_colour_that_is_named():
    for index in range(60):
        drawn = draw_labelled(1, index, DIGITS)
        pixels = np.asarray(drawn.image).astype(int)
        row, column = divmod(int((pixels.max(2) - pixels.min(2)).argmax()), pixels.shape[1])
        assert ("red", "green", "blue")[int(pixels[row, column].argmax())] == drawn.image_pair[1]


def test_scans_are_counted_out_by_digit():
    found = load_digits()
    assert [len(ink) for ink in drawing.scans()] == np.bincount(found.target).tolist()
    assert sum(ink.sum() for ink in drawing.scans()) == pytest.approx(found.images.sum() / 16)
    assert {(ink.min(), ink.max()) for ink in drawing.scans()} == {(0.0, 1.0)}


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"scikit-learn, which cannot be imported .*; install the extra `benchmark`"):
        drawing.scans.__wrapped__()


def test_the_job_writes_the_set_that_is_named(tmp_path, capsys):
    assert shapes(ShapesConfig(out=str(tmp_path), set="digits", rows=6, files=2, wrong=0.5)) == 0
    rows = [row for path in sorted(tmp_path.iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == [f"digits-{index:06d}" for index in range(6)]
    assert "said_digit" in rows[0]
    assert capsys.readouterr().out.startswith("6 images in 2 files")
    with pytest.raises(ValueError, match="set='letters'; expected one of: shapes3, shapes2, shapes2_paper, digits"):
        shapes(ShapesConfig(set="letters"))


def test_a_share_of_wrong_captions_is_a_probability():
    with pytest.raises(ValueError, match=r"wrong=1.5: expected the probability, in 0 ... 1"):
        draw_labelled(0, 0, wrong=1.5)
