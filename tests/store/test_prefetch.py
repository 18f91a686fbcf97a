"""One ahead, no more, in order; errors come where they belong, and no thread stays."""

import gc
import threading
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concept_trak.store.prefetch import prefetch

LONGEST = 30.0  # seconds a test waits for what should come at once


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")}


@given(st.lists(st.integers() | st.none()))
def test_every_item_once_and_in_order(items):
    assert list(prefetch(items)) == items
    assert not threads(), "the thread outlives its source"


def test_the_next_item_is_read_while_one_is_used_and_the_one_after_is_not():
    """The source itself waits for the consumer to use its first item; without reading ahead it would never get on."""
    read = [threading.Event() for _ in range(4)]

    def source():
        for number, event in enumerate(read):
            event.set()
            yield number

    for number in prefetch(source()):
        if number + 1 < len(read):
            assert read[number + 1].wait(LONGEST), "nothing is read while an item is used"
        assert not any(event.is_set() for event in read[number + 2 :]), "two items were read ahead: memory has no bound"


def test_an_unused_source_is_not_read():
    read = []
    coming = prefetch(read.append(number) for number in range(3))
    coming.close()
    assert (read, threads()) == ([], set())


def test_an_error_comes_in_its_place_with_the_traceback_of_the_source():
    def source():
        yield "sound"
        raise ConnectionResetError("storage is gone")

    coming = prefetch(source())
    assert next(coming) == "sound"
    with pytest.raises(ConnectionResetError, match="storage is gone") as raised:
        next(coming)
    assert "source" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert not threads()


@pytest.mark.parametrize("how", ["closed", "consumer fails"])
def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_source(how):
    closed = threading.Event()

    def source():
        try:
            yield from range(1000)
        finally:
            closed.set()

    coming = prefetch(source())
    assert next(coming) == 0
    if how == "closed":
        coming.close()
    else:
        with pytest.raises(KeyError):
            coming.throw(KeyError("the consumer's own"))
    assert closed.is_set(), "files that the source has open stay open"
    assert not threads()


def test_an_item_that_was_used_is_let_go():
    """At any time two items are in memory: the one in use, and the next."""

    class Part:
        alive = 0

        def __init__(self):
            Part.alive += 1

        def __del__(self):
            Part.alive -= 1

    most = 0
    for _ in prefetch(Part() for _ in range(20)):
        most = max(most, Part.alive)
    assert most <= 3, "parts pile up; three for the moment in which one takes the other's place"


def test_what_is_given_up_is_closed_when_it_is_collected_as_garbage():
    """The collector ends the executor's thread before it finalizes the generator, which must not wait for it then."""
    closed = threading.Event()

    def source():
        try:
            yield from range(9)
        finally:
            closed.set()

    cycle: list = [prefetch(source())]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    collector = threading.Thread(target=gc.collect, daemon=True)
    collector.start()
    collector.join(30)
    assert not collector.is_alive(), "the finalizer waits for a thread that has ended"
    assert closed.is_set()
