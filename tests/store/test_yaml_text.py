"""YAML from outside: the same values as PyYAML's own reader, and no document that ends the process."""

import pytest
import yaml

from concept_trak.data.text import read_list
from concept_trak.store.yaml_text import MOST_DEPTH, parse_yaml

DOCUMENT = "a: {b: [1, 2.5, null, true, 'x'], c: 2026-01-02}\nd: |\n  two\n  lines\ne: '\\u2014'\n"


def test_values_are_those_of_the_other_reader():
    assert parse_yaml(DOCUMENT) == parse_yaml(DOCUMENT.encode()) == yaml.safe_load(DOCUMENT)


@pytest.mark.parametrize("text", ["- " * 50_000 + "a", "[" * 50_000 + "]" * 50_000, "{a: " * 500 + "}" * 500])
def test_a_document_that_is_nested_too_deep_is_refused(text, tmp_path):
    with pytest.raises(yaml.YAMLError, match=f"more than {MOST_DEPTH} lists and mappings"):
        parse_yaml(text)
    (tmp_path / "concepts.yaml").write_text(text)
    with pytest.raises(ValueError, match="no readable YAML"):
        read_list(str(tmp_path / "concepts.yaml"), "concepts")


def test_what_is_as_deep_as_allowed_is_read():
    value = parse_yaml("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    for _ in range(MOST_DEPTH - 1):
        (value,) = value
    assert value == []


def test_aliases_are_read_only_where_they_are_allowed():
    text = "- &a {x: 1}\n- *a"
    assert parse_yaml(text, aliases=True) == [{"x": 1}, {"x": 1}]
    with pytest.raises(yaml.YAMLError, match="it has aliases"):
        parse_yaml(text)
