"""What does not go together in a concept: one sentence each, with what to do."""

import re
from typing import Any


def contradiction(concept: Any) -> str:
    """Why a `Concept` with these fields cannot be asked; empty if it can."""
    return next((why for wrong, why in (*_given(concept), *_words(concept), *_scope(concept)) if wrong), "")


def _given(c: Any) -> list[tuple[bool, str]]:
    """A name, and one way of saying what the concept is."""
    ways = {"prompt": c.prompt, "labels": c.labels, "examples": c.examples, "classifier": c.classifier}
    given = [key for key, value in ways.items() if value]
    return [
        (
            not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", c.name),
            "name must be letters, digits, '.', '_' or '-', because it names files and columns",
        ),
        (
            {"prompt", "labels"} <= set(given) or not (given or c.image),
            "give either prompt or labels: the condition that has the concept; or, where no prompt names it, examples "
            "or a classifier",
        ),
        (
            len(given) > 1,
            f"{' and '.join(given)} ask in different ways; give one of them, and the other as a concept of its own",
        ),
        (
            bool(c.classifier) != bool(c.shows),
            "classifier and shows go together: the file, and the name of its class that is the concept",
        ),
    ]


def _words(c: Any) -> list[tuple[bool, str]]:
    """The second condition, and other words."""
    wordless = not (c.prompt or c.labels)
    pairless = bool(c.without_prompt or c.without_labels or c.minus or c.phrasings)
    return [
        (
            wordless and pairless,
            "without_prompt, without_labels, minus and phrasings go with a prompt; examples and classifier have no "
            "second condition",
        ),
        (
            bool(c.without_labels if c.prompt else c.without_prompt),
            "prompt goes with without_prompt, and labels with without_labels",
        ),
        (
            bool(c.minus and (c.without_prompt or c.labels)),
            "minus writes out without_prompt from prompt; give prompt and one of the two",
        ),
        (bool(c.phrasings and c.labels), "phrasings are other words for a prompt, and labels have none; ask for each"),
        (any(not p.prompt for p in c.phrasings), "a phrasing has no prompt; leave it out, or write what it says"),
        (
            len({c.prompt, *(p.prompt for p in c.phrasings)}) <= len(c.phrasings),
            "two phrasings are the same; a prompt that stands twice would count twice",
        ),
    ]


def _scope(c: Any) -> list[tuple[bool, str]]:
    ways = 1 + len(c.phrasings)
    return [
        (c.scope not in ("global", "local"), f"scope={c.scope!r}; expected global or local"),
        ((c.scope == "local") != bool(c.image), "scope=local needs image=<path>, and only it does"),
        (c.samples < 1, f"samples={c.samples}; expected at least 1"),
        (
            c.scope == "global" and c.samples < ways,
            f"samples={c.samples} cannot be split over {ways} phrasings; expected at least one for each",
        ),
    ]
