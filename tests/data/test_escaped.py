"""What cannot be seen, or moves what can, is shown as an escape; every language stays readable."""

import pytest

from concept_trak.data.text import escaped, one_line


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2Jcls", "\\x1b[2Jcls"),
        ("a\rb", "a\\rb"),
        ("\a\b\x00\x7f", "\\x07\\x08\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil\u202c", "\\u202eevil\\u202c"),
        ("\u2066a\u2069\u200f\u061c", "\\u2066a\\u2069\\u200f\\u061c"),
        ("a\u200bb\u200db\ufeff", "a\\u200bb\\u200db\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
        ("a\nforged", "a\\nforged"),
    ],
)
def test_what_is_hidden_is_written_out(hostile, shown):
    assert escaped(hostile) == shown


@pytest.mark.parametrize(
    "text",
    ["ein Käfer", "\u4e00\u3000\u4e8c", "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
     "👩\u200d👩\u200d👧", "❤️", "עברית", "a\u00a0b", "\u0915\u094d\u200d\u0937", "e\u0301", "plain \\x1b"],
)  # fmt: skip
def test_the_text_of_every_language_stays(text):
    assert escaped(text) == text


def test_newlines_stay_where_they_are_wanted():
    assert escaped("a\n\tb\r\x1b", "\n\t") == "a\n\tb\\r\\x1b"
    assert one_line("a\n b\x1b") == "a b\\x1b"
    assert one_line("x" * 400, 100) == "x" * 100 + "..."
