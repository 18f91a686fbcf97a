"""Queries on storage: what was written comes back, and what cannot be right is refused by name."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from concept_trak.store.manifest import Audit, query_file, write_table
from concept_trak.store.part import Damaged
from concept_trak.store.queries import COLUMNS, StoredQuery, read_query, write_query
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows

QUERY = StoredQuery(
    concept="red",
    method="m",
    phi=np.array([1.0, 2.0, 3.0], np.float32),
    solved=np.array([0.1, 0.2, 0.3], np.float32),
    residual=1e-7,
    lam=0.5,
    spread_solved=2.0,
    spread_phi=3.0,
    groups=np.arange(6, dtype=np.float32).reshape(2, 3),
)


@pytest.fixture
def audit(tmp_path) -> Audit:
    return Audit(Store(str(tmp_path)), "demo")


def test_a_query_comes_back(audit: Audit, tmp_path):
    assert write_query(audit, QUERY)
    query = read_query(audit, "m", "red")
    np.testing.assert_array_equal(query.vector("damped"), QUERY.solved)
    np.testing.assert_array_equal(query.vector("plain"), QUERY.phi)
    np.testing.assert_array_equal(query.groups, QUERY.groups)
    assert replace(query, phi=QUERY.phi, solved=QUERY.solved, groups=QUERY.groups) == QUERY
    columns = pq.read_schema(tmp_path / "audits/demo/m/queries/red.parquet").names
    assert columns == list(COLUMNS)
    assert [name for name in columns if name not in ("residual", "lambda", "spread_solved", "spread_phi")] == [
        "concept", "method", "phi", "solved", "groups"
    ]  # fmt: skip


def test_the_query_that_is_there_stays(audit: Audit):
    write_query(audit, QUERY)
    assert not write_query(audit, replace(QUERY, lam=7.0))
    assert read_query(audit, "m", "red").lam == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phi": np.array([1.0, np.nan, 3.0], np.float32)}, "numbers that are not finite"),
        ({"lam": np.inf}, "numbers that are not finite"),
        ({"spread_solved": np.nan}, "numbers that are not finite"),
        ({"groups": np.full((2, 3), np.inf, np.float32)}, "numbers that are not finite"),
    ],
    ids=["phi", "lambda", "spread", "groups"],
)
def test_numbers_that_are_not_finite_are_refused(audit: Audit, change, message):
    write_query(audit, replace(QUERY, **change))
    with pytest.raises(Damaged, match=rf"audits/demo/m/queries/red.parquet is damaged: .*{message}"):
        read_query(audit, "m", "red")


def test_a_query_under_another_name_and_a_truncated_file_are_refused(audit: Audit):
    write_query(audit, QUERY)
    data = audit.store.read(audit.name("m/queries/red.parquet"))
    audit.store.create(audit.name("m/queries/blue.parquet"), data)
    with pytest.raises(Damaged, match="it is the query of red by m"):
        read_query(audit, "m", "blue")
    audit.store.replace(audit.name("m/queries/red.parquet"), data[: len(data) // 2])
    with pytest.raises(Damaged, match=r"red\.parquet is damaged"):
        read_query(audit, "m", "red")
    with pytest.raises(FileNotFoundError):
        read_query(audit, "m", "green")


def test_a_query_of_an_earlier_version_has_no_groups(audit: Audit):
    """Its file has no such column."""
    row = {name: getattr(QUERY, "lam" if name == "lambda" else name) for name in list(COLUMNS)[:-1]}
    kinds = {name: COLUMNS[name] for name in row}
    write_table(audit, query_file("m", "red"), from_rows(kinds, [row]))
    assert read_query(audit, "m", "red").groups is None
    write_query(audit, replace(QUERY, concept="blue", groups=None))
    assert read_query(audit, "m", "blue").groups is None
