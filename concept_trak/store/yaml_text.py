"""YAML from outside, within bounds. libyaml reads it some ten times as fast as PyYAML's own reader."""

from typing import Any

import yaml

MOST_DEPTH = 100
"""Lists and mappings inside one another: libyaml's loader recurses without a limit, which ends the process."""
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str | bytes, aliases: bool = False) -> Any:
    """A YAML document as Python values.

    Args:
        text: the document.
        aliases: whether it may use a value twice. A few lines of aliases can stand for more values than memory holds.

    Raises:
        yaml.YAMLError: it is no YAML, is nested too deep, or has aliases.
        ValueError: it has a date that does not exist.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise yaml.YAMLError("it has aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise yaml.YAMLError(f"it has more than {MOST_DEPTH} lists and mappings inside one another")
    return yaml.load(text, Loader=_SafeLoader)
