"""Reading one item ahead: what storage is asked for next arrives while what came before is used."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
END: Any = object()


def prefetch(source: Iterable[T]) -> Generator[T, None, None]:
    """The items of `source`, in order. While the consumer uses one, one thread takes the next from it, and no more.

    So two items are in memory at a time, whatever their number. The source's error comes where its item would have
    come, with the source's own traceback. If the consumer stops early, the item on its way is waited for; then the
    thread ends, and a source that is a generator is closed.
    """
    items = iter(source)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as reader:
        coming = reader.submit(next, items, END)
        try:
            while (item := coming.result()) is not END:
                coming = reader.submit(next, items, END)
                yield item
        finally:
            # Closed here and not by the reader: where this generator is collected as garbage, its thread has ended.
            wait([coming])
            if isinstance(items, Generator):
                items.close()
