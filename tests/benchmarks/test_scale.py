"""The simulation at a size at which it says nothing about speed: requests, which do not depend on the machine."""

import json
from typing import Any

import pytest

from tests.benchmarks import scale, scale_page
from tests.benchmarks.scale_page import exponent, pages, requests

SMALL, LARGE, ROWS = 100, 300, 100


@pytest.fixture(scope="module")
def simulated() -> dict[int, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "CONCEPTS", 2)
        return {shards: scale.simulate(shards, ROWS) for shards in (SMALL, LARGE)}


def stage(audit: dict[str, Any], *stages: str) -> int:
    """Requests of some stages but for pages of listings."""
    kinds = [audit["requests"].get(name, {}) for name in stages]
    return sum(n for each in kinds for kind, n in each.items() if kind != scale_page.LISTINGS)


def test_no_shard_costs_a_request_of_its_own(simulated):
    for result in simulated.values():
        first = result["audits"]["first"]
        assert requests(first) < 250, "a request for each shard"


def test_an_audit_of_unchanged_data_starts_with_a_handful_of_files(simulated):
    small, large = (simulated[shards]["audits"]["same"] for shards in (SMALL, LARGE))
    for audit in (small, large):
        assert stage(audit, "list", "plan", "between", "featurize", "gram") < 60
        assert not {"featurize", "index"} & set(audit["seconds"]), "what is done was done again"
    new = [simulated[shards]["new"] for shards in (SMALL, LARGE)]
    more = stage(large, "plan", "between") - stage(small, "plan", "between")
    assert more <= 2 * (new[1] - new[0]), "more than a look and a read of each record that is in no file of many yet"


def test_growth_costs_what_is_new(simulated):
    for result in simulated.values():
        grown, same = (result["audits"][audit] for audit in ("grown", "same"))
        start = ("list", "plan", "between", "featurize", "gram")
        assert stage(grown, *start) - stage(same, *start) <= 3 * result["new"] + 20


def test_gc_leaves_the_last_audit_and_all_that_it_needs(simulated):
    from concept_trak.store.manifest import Audit, read_manifest
    from concept_trak.store.store import Store

    store = Store(scale.STORE)
    manifest = read_manifest(Audit(store, "same"))
    assert manifest is not None
    parts = {part["name"] for part in manifest["parts"]}
    assert len(parts) == LARGE + LARGE // 100
    assert parts <= set(store.names("features"))
    assert read_manifest(Audit(store, "first")) is None
    used = simulated[LARGE]["audits"]["gc"]["requests"]["gc"]
    assert used["look up"] < 3 * used["delete"], "size and time of writing are asked for one by one"


def test_a_small_real_audit_has_a_row_of_the_same_kind():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "CONCEPTS", 2)
        result = scale.real(3, 10)
    assert result["samples"] == 30
    assert set(result["audits"]) == {"first", "same"}
    assert {"list", "plan", "featurize", "gram", "score", "publish"} <= set(result["audits"]["first"]["seconds"])
    assert requests(result["audits"]["first"]) > 0


def test_the_page_has_every_table_the_exponents_and_the_bounds(tmp_path, simulated):
    rows = list(simulated.values())
    page = scale_page.publish_scale(tmp_path, {"simulated, by shards": rows}, "python -m tests.benchmarks.scale")
    text = page.read_text()
    assert f"| {LARGE * ROWS:,} | {LARGE:,} |" in text
    assert f"## Bounds, at {LARGE * ROWS:,} samples in {LARGE} shards" in text
    assert "| driver's memory |" in text
    assert json.loads((tmp_path / "scale.json").read_text())["simulated, by shards"][0]["shards"] == SMALL


def test_an_exponent_is_a_slope_in_logarithms():
    rows = [{"shards": n, "figure": float(n**2)} for n in (10, 100)]
    assert exponent(rows, "shards", lambda row: row["figure"], 0) == "2.00"
    assert exponent(rows, "shards", lambda row: row["figure"], 1e9) == "–"
    assert pages({"requests": {"a": {scale_page.LISTINGS: 2, "read": 5}}}) == 2
