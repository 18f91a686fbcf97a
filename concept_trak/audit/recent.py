"""The values that were used last, by their keys."""

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Keeps a number of values; the one that was not used for longest is dropped first.

    Args:
        most: number of values.
    """

    def __init__(self, most: int) -> None:
        self._most, self._values = most, OrderedDict[str, Value]()

    def get(self, key: str) -> Value | None:
        """The value of a key, if it is still kept."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def keep(self, key: str, value: Value) -> Value:
        """Keep a value, and return it."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return value
