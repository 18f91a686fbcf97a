"""Grades among the carriers whose caption names the concept and among the others: against rankings without the rest."""

import numpy as np
import pytest

from concept_trak.attribution import ranking
from concept_trak.attribution.concept import Concept
from concept_trak.evaluation.caption_groups import Carriers, caption_gains, carriers

RED = Concept("red", prompt="a red circle", without_prompt="a circle", truth={"colour": "red"})


def test_either_part_is_graded_as_if_the_other_had_never_been_ranked():
    """Few whole numbers, so that ties are many; ids in no order."""
    rng = np.random.default_rng(0)
    scores, kind = rng.integers(0, 5, (80, 4)).astype(float), rng.integers(0, 4, 80)
    ids = [f"s{i}" for i in rng.permutation(80)]
    groups = Carriers(kind == 0, kind == 1)
    gains = caption_gains(scores, groups, ids)
    for own, other, found in (
        (groups.named, groups.unnamed, gains.named),
        (groups.unnamed, groups.named, gains.unnamed),
    ):
        for j in range(4):
            order = sorted(np.flatnonzero(~other), key=lambda i, j=j: (-scores[i, j], ids[i]))
            relevant = own[order].tolist()
            assert found[j] == pytest.approx(ranking.average_precision(relevant) - ranking.base_rate(relevant))


def test_a_search_of_captions_finds_no_carrier_that_captions_do_not_name():
    rng = np.random.default_rng(1)
    shown, said = rng.random((2, 400, 1)) < 0.4
    lookup = np.concatenate([said + 0.5 * rng.random((400, 1)) for _ in range(20)], 1)
    groups = Carriers((shown & said)[:, 0], (shown & ~said)[:, 0])
    gains = caption_gains(lookup, groups, [str(i) for i in range(400)])
    assert gains.named.min() > 0.1
    assert gains.unnamed.max() < -0.05, "wrongly named samples rank before all of them"


@pytest.mark.parametrize("truth", [{"colour": "red"}, {"said_colour": "red"}, {"colour": "red", "said_colour": "red"}])
def test_what_captions_say_is_read_from_their_labels(truth):
    labels = [
        {"colour": "red", "said_colour": "red"},
        {"colour": "red", "said_colour": ""},
        {"colour": "red", "said_colour": "blue"},
        {"colour": "blue", "said_colour": "red"},
    ]
    concept = Concept("red", prompt="a red circle", without_prompt="a circle", truth=truth)
    named, unnamed = carriers(concept, labels)
    assert named.tolist() == [True, False, False, False]
    assert unnamed.tolist() == [False, True, True, False]


def test_without_labels_of_captions_every_caption_names_its_picture():
    groups = carriers(RED, [{"colour": "red"}, {"colour": "blue"}])
    assert groups.named.tolist() == [True, False]
    assert not groups.unnamed.any()
    assert np.isnan(np.stack(caption_gains(np.ones((2, 3)), groups, ["a", "b"]))).all()
