"""The sets whose captions use other words than a question, or name one of the two shapes of their image."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from concept_trak.data.benchmarks import drawing
from concept_trak.data.benchmarks.synthetic import SAID, draw_labelled, labels_of, write_synthetic
from concept_trak.data.benchmarks.two_factors import SHAPES3, SYNONYMS, TWO_SHAPES
from concept_trak.evaluation.caption_groups import carriers
from concept_trak.evaluation.retrieval import cell_concept, cells
from concept_trak.evaluation.training.benchmark_models import initial_pipeline, training_set
from concept_trak.evaluation.training.settings import TrainConfig

ROWS = 100
DEVIATIONS = 4.5  # standard deviations of a binomial count, exceeded by chance once in 150 000 such tests
OTHER = dict(SYNONYMS.synonyms)


def rows_of(folder, kinds, rows=ROWS, **how):
    return [
        row
        for path in write_synthetic(folder, rows, 3, kinds, files=2, resolution=16, **how)
        for row in pq.read_table(path).to_pylist()
    ]


def is_near_half(count, total):
    return abs(count - total / 2) < DEVIATIONS * math.sqrt(total / 4)


def test_synonyms_change_words_and_nothing_else(tmp_path):
    usual, worded = (rows_of(tmp_path / kinds.name, kinds) for kinds in (SHAPES3, SYNONYMS))
    keep = ("id", "image", "shape", "colour")
    assert [[row[name] for name in keep] for row in worded] == [[row[name] for name in keep] for row in usual]
    for row in worded:
        assert row["caption"] == f"a {row['said_colour']} {row['said_shape']}"
        assert all(row[f"said_{name}"] in (row[name], OTHER[row[name]]) for name in ("shape", "colour"))
    second = [[row[f"said_{name}"] != row[name] for row in worded] for name in ("shape", "colour")]
    both = [a and b for a, b in zip(*second, strict=True)]
    assert all(is_near_half(sum(own), ROWS) for own in second)
    assert is_near_half(2 * sum(both), ROWS), "the two factors share a coin"


def test_a_second_word_counts_as_a_caption_that_does_not_name_the_concept(tmp_path):
    rows = rows_of(tmp_path, SYNONYMS)
    red = next(cell for cell in cells(SYNONYMS) if cell.value == "red")
    groups = carriers(cell_concept(red, SYNONYMS, True, 1, "shown"), rows)
    assert groups.named.tolist() == [row["said_colour"] == "red" for row in rows]
    assert groups.unnamed.tolist() == [row["said_colour"] == "crimson" for row in rows]


def colours_at(image, columns):
    """The colours of the strongly coloured pixels of some columns of an image."""
    pixels = np.asarray(image).astype(int)[:, columns].reshape(-1, 3)
    vivid = pixels[pixels.max(1) - pixels.min(1) > 60]
    return {drawing.COLOURS[channel] for channel in vivid.argmax(1)}, len(vivid)


def test_an_image_shows_its_two_pairs_side_by_side():
    for index in range(40):
        drawn = draw_labelled(1, index, TWO_SHAPES, 64)
        (_, large), (_, small) = drawn.shown_pairs
        parts = {"left": (slice(40), slice(40, 64)), "right": (slice(24, 64), slice(24))}
        seen = {side: [colours_at(drawn.image, columns) for columns in own] for side, own in parts.items()}
        assert any(
            (first, second) == ({large}, {small}) and area > other for (first, area), (second, other) in seen.values()
        ), f"{drawn.id} shows {seen} and is labelled {drawn.shown_pairs}"


def test_labels_name_what_either_shape_shows_and_half_of_the_captions_one_shape(tmp_path):
    rows, alone = rows_of(tmp_path, TWO_SHAPES), 0
    assert labels_of(TWO_SHAPES)[:6] == tuple(f"shape_{s}" for s in drawing.SHAPES) + tuple(
        f"colour_{c}" for c in drawing.COLOURS
    )
    for index, row in enumerate(rows):
        drawn = draw_labelled(3, index, TWO_SHAPES, 16)
        assert ("triangle", "red") not in drawn.shown_pairs
        values, words = {v for pair in drawn.shown_pairs for v in pair}, set(row["caption"].split())
        for name in labels_of(TWO_SHAPES)[:6]:
            value = name.split("_")[1]
            assert row[name] == (value if value in values else "")
            assert row[f"{SAID}{name}"] == (value if value in words else "")
        alone += "and" not in words
        assert row["caption"] == " and ".join(f"a {c} {s}" for s, c in drawn.shown_pairs[: 1 + ("and" in words)])
    assert is_near_half(alone, ROWS)


def test_captions_of_two_shapes_leave_a_factor_of_both_out(tmp_path):
    whole, part = (rows_of(tmp_path / (name or "whole"), TWO_SHAPES, 30, unsaid=name) for name in ("", "colour"))
    for row, full in zip(part, whole, strict=True):
        kept = [word for word in full["caption"].split() if word not in drawing.COLOURS]
        assert row["caption"].split() == kept
        assert not any(row[f"{SAID}colour_{colour}"] for colour in drawing.COLOURS)


@pytest.mark.parametrize("kinds", [SYNONYMS, TWO_SHAPES], ids=["synonyms", "two_shapes"])
def test_a_model_reads_every_word_of_a_caption_whole(kinds):
    config = TrainConfig(set=kinds.name, network="transformer", resolution=16, images=40)
    tokenizer = initial_pipeline(config).tokenizer
    longest = "a red triangle and a blue circle" if kinds is TWO_SHAPES else "a crimson wedge"
    tokens = tokenizer(longest, padding="max_length").input_ids
    assert tokenizer.decode(tokens, skip_special_tokens=True).split() == longest.split()
    assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= tokenizer.model_max_length
    data = training_set(config, tokenizer)
    texts = [tokenizer.decode(own, skip_special_tokens=True).strip() for own in data.tokens[0]]
    first = draw_labelled(0, 0, kinds, 16)
    assert texts[0] == first.caption
    assert texts[3] == ""
    assert set(texts[1].split()) | set(texts[2].split()) == set(texts[0].split())
