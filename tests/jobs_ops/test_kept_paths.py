"""Inversions that were kept: which of them audits stand on, and whether they are as they were written."""

import os
import shutil
import time

import pytest

from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.models.small import pixel_pipeline
from jobs.gc import GcConfig, gc
from jobs.verify import VerifyConfig, verify
from tests.jobs.world import RESOLUTION
from tests.jobs_ops.audited import CONCEPT, Audited, cut, flip, unfinish

ROW = "methods.concept_trak"
SMALL = (
    "cluster=serial", "projector.dim=16", "method=concept_trak", CONCEPT, "model.parameters=cross_attention",
    "keep_states=true", *(f"{ROW}.{side}.{key}" for side in ("train", "query") for key in ("points=6", "every=3")),
)  # fmt: skip
Kept = dict[str, set[str]]


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Audited:
    """Two audits of eight images: `guided`, and after it `free` on paths of its own; all is three days old."""
    made = Audited(tmp_path_factory.mktemp("kept"))
    pixel_pipeline(0, RESOLUTION).save_pretrained(made.root / "model")
    write_synthetic(made.data, 8, 0, files=1, resolution=RESOLUTION)
    for name, guidance in (("guided", 7.5), ("free", 1.0)):
        assert made.run(name, f"{ROW}.train.guidance={guidance}", small=SMALL) == 0
        (made.root / name).write_text("\n".join(standing(made)))
    for file in (made.store, *made.store.rglob("*")):
        os.utime(file, (old := time.time() - 72 * 3600, old))
    shutil.copytree(made.root / "live", made.root / "pristine")
    return made


def standing(made: Audited) -> list[str]:
    return sorted(made.name(path) for path in made.store.glob("states/*/*.safetensors"))


@pytest.fixture
def kept(audited: Audited) -> Kept:
    """The states of each audit."""
    first, both = (set((audited.root / name).read_text().splitlines()) for name in ("guided", "free"))
    assert (len(first), len(both)) == (8, 16)
    return {"guided": first, "free": both - first}


@pytest.fixture
def collected(audited: Audited, capsys):
    """Run gc, and return the states that it listed."""

    def run(**keys) -> set[str]:
        capsys.readouterr()
        assert gc(GcConfig(store=str(audited.store), **keys)) == 0
        return {line[16:] for line in capsys.readouterr().out.splitlines() if line[16:].startswith("states/")}

    return run


def test_states_stay_as_long_as_an_audit_stands_on_their_paths(audited: Audited, kept: Kept, collected):
    notes = audited.store / "states/notes.txt"
    notes.write_text("somebody's own")
    os.utime(notes, (0, 0))
    assert collected() == set(), "both audits live"
    assert collected(keep=1) == kept["guided"], "the older of two finished audits goes, and its states with it"
    unfinish(audited, "guided")
    assert collected(keep=1) == set(), "an audit that is not finished may go on"
    assert collected(unfinished_days=2) == kept["guided"]
    assert collected(unfinished_days=4) == set(), "it wrote something three days ago"
    assert collected(unfinished_days=2, grace_hours=96) == set(), "nothing is older than the grace"
    young = audited.store / min(kept["guided"])
    os.utime(young)
    shutil.rmtree(audited.store / "audits/guided")
    assert collected(delete=True) == kept["guided"] - {audited.name(young)}
    assert set(standing(audited)) == kept["free"] | {audited.name(young)}
    assert notes.exists()


def test_an_audit_of_the_same_path_keeps_states_for_the_next(audited: Audited, kept: Kept, collected):
    """Another projector is another feature set, and stands on the same path."""
    assert audited.run("narrow", "projector.dim=8", small=SMALL) == 0
    assert set(standing(audited)) == kept["guided"] | kept["free"], "it inverted again"
    for name in ("guided", "free"):
        shutil.rmtree(audited.store / "audits" / name)
    assert collected() == kept["free"]


def test_a_feature_set_that_cannot_be_read_stops_everything(audited: Audited, collected):
    for path in audited.store.glob("features/*/feature_set.json"):
        flip(path, 0)
    with pytest.raises(
        ValueError, match=r"feature_set.json cannot be read .* kept states that it needs are unknown. Nothing more is"
    ):
        collected(delete=True, grace_hours=0)
    assert len(standing(audited)) == 16


def test_damaged_states_are_found_and_made_again(audited: Audited, kept: Kept, capsys):
    config = VerifyConfig(store=str(audited.store))
    assert verify(config) == 0
    first, second = sorted(kept["guided"])[:2]
    flip(audited.store / first, -9)
    cut(audited.store / second)
    capsys.readouterr()
    assert verify(config) == 6
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "states/" in line] == [
        f"altered              {name}: it is made again when it is needed" for name in (first, second)
    ]
    assert verify(VerifyConfig(store=str(audited.store), repair=True)) == 0
    assert verify(config) == 0
    assert set(standing(audited)) == (kept["guided"] | kept["free"]) - {first, second}
    assert audited.run("narrow", "projector.dim=8", small=SMALL) == 0
    assert set(standing(audited)) == kept["guided"] | kept["free"]
