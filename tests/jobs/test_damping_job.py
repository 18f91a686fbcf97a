"""`damping=auto` in an audit: the choice, its curve, and what falls back to the default."""

import json

import numpy as np
import pytest

from concept_trak.attribution.damping import DAMPINGS
from concept_trak.audit.damping import CORRELATED_PARTS, CORRELATED_ROWS, correlated_records
from concept_trak.store.records import Record

RED = "{name: red, prompt: a red square, without_prompt: square, samples: 4}"
TRIANGLE = "{name: triangle, prompt: a red triangle, without_prompt: red, samples: 4}"
BOTH = f"concepts=[{TRIANGLE},{RED}]"


@pytest.fixture(scope="module")
def chosen(world, tmp_path_factory):
    return world.audit(tmp_path_factory.mktemp("store"), BOTH, "damping=auto")


def choice_of(found):
    return json.loads((found.folder / "caption_trak" / "damping.json").read_text())


def test_the_chosen_damping_is_where_halves_agree_most_and_concepts_least(chosen):
    choice = choice_of(chosen)
    separation = {p["damping"]: p["within"] - p["between"] for p in choice["curve"]}
    assert tuple(separation) == DAMPINGS
    assert choice["damping"] == max(separation, key=separation.__getitem__)
    assert len(set(separation.values())) == len(DAMPINGS)
    assert choice["reason"] == ""
    assert json.loads((chosen.folder / "metrics.json").read_text())["methods"]["caption_trak"]["damping"] == choice
    assert any(name.endswith("caption_trak/damping.json") for name in chosen.manifest["files"])


def test_the_scores_are_those_of_the_chosen_damping(world, chosen):
    damping = choice_of(chosen)["damping"]
    fixed = world.audit(chosen.store, BOTH, f"damping={damping}", "audit=fixed")
    assert fixed.top() == chosen.top()
    assert not (fixed.folder / "caption_trak" / "damping.json").exists(), "nothing was chosen"
    _, _, phi = fixed.features()
    for concept in ("red", "triangle"):
        assert chosen.query("caption_trak", concept)["lambda"] == pytest.approx(
            damping * np.square(phi).sum() / phi.shape[1], rel=1e-5
        )


def test_the_answer_is_that_nothing_taught_a_model_that_was_never_trained(chosen):
    """The weights of this model are the initial ones."""
    certainty = json.loads((chosen.folder / "metrics.json").read_text())["certainty"]
    for name in ("red", "triangle"):
        assert not certainty[name]["fit"]["told"]
        assert certainty[name]["methods"]["caption_trak"]["of"] == 24
    page = (chosen.folder / "report.html").read_text()
    assert page.count("Nothing in this data is shown to have taught it") == 2
    assert "taught it most" not in page


def test_an_interval_holds_its_score_and_its_rank(chosen):
    for end in ("top", "bottom"):
        for row in chosen.top(end=end):
            assert row["low"] <= row["score"] <= row["high"]
            assert 1 <= row["rank_low"] <= row["rank"] <= row["rank_high"] <= 48
        plain = chosen.top(form="plain", end=end)
        assert all(row["low"] is row["high"] is row["rank_low"] is row["rank_high"] is None for row in plain)


def test_a_resumed_audit_keeps_the_choice_that_was_made(world, chosen):
    """Even where its queries, computed again, would choose another by their rounding."""
    store = chosen.store
    first = world.audit(store, BOTH, "damping=auto", "audit=stopped")
    other = next(d for d in DAMPINGS if d != choice_of(first)["damping"])
    for name in ("manifest.json", "metrics.json", "top.parquet", "report.html", "caption_trak/queries/red.parquet",
                 "caption_trak/queries/triangle.parquet"):  # fmt: skip
        (first.folder / name).unlink()
    for path in (first.folder / "caption_trak" / "scores").iterdir():
        path.unlink()
    kept = choice_of(first) | {"damping": other}
    (first.folder / "caption_trak" / "damping.json").write_text(json.dumps(kept))
    again = world.audit(store, BOTH, "damping=auto", "audit=stopped")
    assert choice_of(again)["damping"] == other
    assert again.query("caption_trak", "red")["lambda"] != chosen.query("caption_trak", "red")["lambda"]


@pytest.mark.parametrize(
    ("concepts", "reason"),
    [
        (f"concepts=[{RED}]", "there is one concept"),
        (
            f"concepts=[{TRIANGLE},{RED.replace('samples: 4', 'samples: 1')}]",
            "fewer than two concepts have two samples",
        ),
    ],
)
def test_where_nothing_can_be_chosen_the_default_holds_and_says_why(world, chosen, concepts, reason):
    found = world.audit(chosen.store, concepts, "damping=auto", f"audit=alone{len(reason)}")
    choice = choice_of(found)
    assert (choice["damping"], choice["curve"]) == (100.0, [])
    assert choice["reason"].startswith(reason)


def record(number, rows):
    return Record(
        shard=f"{number}", rows=rows, rejected=0, bytes=1, sha256="", sum_squares=1.0, seconds=0.0, attempt=1, host="",
        rejects_by_reason={}, fingerprint="",
    )  # fmt: skip


def test_parts_are_spread_over_the_plan():
    many = [record(i, 100) for i in range(1000)]
    assert [r.shard for r in correlated_records(many)] == [f"{1000 * i // CORRELATED_PARTS}" for i in range(8)]
    large = [record(i, CORRELATED_ROWS // 2) for i in range(10)]
    assert [r.shard for r in correlated_records(large)] == ["0", "5"]
    assert [r.shard for r in correlated_records([record(0, 0), record(1, 3)])] == ["1"]
