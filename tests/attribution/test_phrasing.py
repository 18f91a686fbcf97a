"""A prompt minus a phrase, as a person would write it; and what is told of the conditions that came of it."""

import pytest

from concept_trak.attribution.concept import Concept, Phrasing, without_phrase

WRITTEN = [
    ("a red triangle", "red", "a triangle"),
    ("a red triangle", "triangle", "a red"),
    ("a red triangle", "red triangle", ""),
    ("a red apple", "red", "an apple"),
    ("An orange cat", "orange", "A cat"),
    ("a RED, shiny ball", "red", "a shiny ball"),
    ("Pikachu in the style of Picasso", "Pikachu", "in the style of Picasso"),
    ("Pikachu in the style of Picasso", "in the style of Picasso", "Pikachu"),
    ("a photo of a cat.", "cat", "a photo."),
    ("a cat, a dog, a bird", "a dog", "a cat, a bird"),
    ("red on red", "red", ""),
    ("a redder thing in red", "red", "a redder thing"),
    ("a  tall   old  man", "tall old", "a man"),
    ("a picture in the style of <new1> art", "<new1>", "a picture in the style of art"),
    ("a+b (c) d", "(c)", "a+b d"),
]


@pytest.mark.parametrize(("prompt", "phrase", "rest"), WRITTEN)
def test_a_prompt_minus_a_phrase(prompt, phrase, rest):
    assert without_phrase(prompt, phrase) == rest


@pytest.mark.parametrize("phrase", ["blue", "tri", "", "red  square", "."])
def test_a_phrase_that_is_not_there_is_refused(phrase):
    with pytest.raises(ValueError, match=r"is not in 'a red triangle'; give a phrase of the prompt, or write"):
        without_phrase("a red triangle", phrase)


def test_minus_writes_out_the_second_condition_and_says_so():
    concept = Concept("red", prompt="a red triangle", minus="red")
    assert (concept.text, concept.without) == ("a red triangle", "a triangle")
    assert concept.question == "'a red triangle' without it: 'a triangle' (minus 'red', written out)"
    with pytest.raises(ValueError, match=r"concept 'red': minus: 'blue' is not in 'a red triangle'"):
        Concept("red", prompt="a red triangle", minus="blue")


def test_phrasings_bring_their_own_second_condition_or_take_the_concepts():
    words = (Phrasing("one crimson triangle"), Phrasing("red ink", "ink"))
    asked = Concept("red", prompt="a red triangle", without_prompt="a triangle", phrasings=words).condition_pairs
    assert asked == (("a red triangle", "a triangle"), ("one crimson triangle", "a triangle"), ("red ink", "ink"))
    words = (Phrasing("a triangle that is red"), Phrasing("red ink", "ink"))
    asked = Concept("red", prompt="a red triangle", minus="red", phrasings=words).condition_pairs
    assert asked == (
        ("a red triangle", "a triangle"),
        ("a triangle that is red", "a triangle that is"),
        ("red ink", "ink"),
    )
    with pytest.raises(ValueError, match=r"concept 'red': minus: 'red' is not in 'crimson'"):
        Concept("red", prompt="a red triangle", minus="red", phrasings=(Phrasing("crimson"),))
