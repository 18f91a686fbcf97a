"""A tick is one name for as long as it lasts, and names sort as time goes."""

from datetime import UTC, datetime, timedelta

import pytest

from concept_trak.audit.resolve import TICKS, tick
from concept_trak.config import AuditConfig
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from tests.configured import configure

HOURS = {"@hourly": 1, "@daily": 24, "@weekly": 7 * 24}


def test_ticks_by_hand():
    now = datetime(2027, 1, 1, 3, 30, tzinfo=UTC)  # a Friday: its week began in December
    assert [tick(word, now) for word in TICKS] == ["2027-01-01T03", "2027-01-01", "2026-W53", "2027-01"]
    assert tick("week-1", now) == "week-1"
    assert tick("", now) == ""
    with pytest.raises(ValueError, match=r"'@yearly' is not a schedule; expected one of: @hourly, @daily"):
        tick("@yearly", now)


@pytest.mark.parametrize("word", HOURS)
def test_every_tick_lasts_as_long_as_the_next_and_comes_after_the_last(word):
    """Over the turn of a year, from a Monday on."""
    start, hours = datetime(2026, 11, 30, tzinfo=UTC), 60 * 24
    names = [tick(word, start + timedelta(hours=h)) for h in range(hours)]
    assert names == sorted(names), "a listing of the store would not be in the order of time"
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    assert set(list(counts.values())[:-1]) == {HOURS[word]}
    assert all(Audit(Store("/nowhere"), name).id == name for name in counts), "no audit may have such a name"


def test_the_command_line_takes_it():
    assert configure(AuditConfig, "config", ["audit=@weekly"]).audit == "@weekly"
