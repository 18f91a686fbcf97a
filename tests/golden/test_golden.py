"""A refactoring changes no byte: every row of `METHODS` on the demo, against the record of before."""

import json

import pytest

from concept_trak.attribution.method import METHODS
from tests.golden.record import RECORD, computed, processor

pytestmark = pytest.mark.long
RECORDED = json.loads(RECORD.read_text())
SAME_PROCESSOR = RECORDED["processor"] == processor()
ROUNDING = 2e-3
"""Of a norm or a score, on a processor that adds in another order; guided inversions amplify it."""


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    return computed(tmp_path_factory.mktemp("golden"))


def test_every_row_of_the_table_is_in_the_record():
    assert set(RECORDED["parts"]) == set(METHODS), "record the new row: python -m tests.golden.record"


@pytest.mark.timeout(600)
def test_features_and_answers_are_those_of_the_record(now):
    for method, parts in RECORDED["parts"].items():
        assert now["fingerprints"][method] == RECORDED["fingerprints"][method], f"{method}: its settings are others"
        for before, after in zip(parts, now["parts"][method], strict=True):
            assert after["norms"] == pytest.approx(before["norms"], rel=ROUNDING), f"{method}: its features changed"
            assert not SAME_PROCESSOR or after["sha256"] == before["sha256"], f"{method}: bytes of a part changed"
    for before, after in zip(RECORDED["scores"], now["scores"], strict=True):
        assert after[:4] == before[:4], "top.parquet has other rows"
        assert after[5] == pytest.approx(before[5], rel=ROUNDING), f"the score of {before[:5]} changed"
    assert not SAME_PROCESSOR or now["top"] == RECORDED["top"], "top.parquet changed, features did not"
