"""Read one item ahead, so that storage and computation overlap."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
END: Any = object()


def prefetch(source: Iterable[T]) -> Generator[T, None, None]:
    """The items of `source`, in order. While the consumer uses one item, a thread takes the next one.

    So at most two items are in memory. An error of the source is raised in place of its item, with the source's own
    traceback. If the consumer stops early, this waits for the pending item; then the thread ends, and a source that is
    a generator is closed.
    """
    items = iter(source)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as reader:
        coming = reader.submit(next, items, END)
        try:
            while (item := coming.result()) is not END:
                coming = reader.submit(next, items, END)
                yield item
        finally:
            # Closed by this thread: the reader may be gone when this generator is collected as garbage.
            wait([coming])
            if isinstance(items, Generator):
                items.close()
