"""A worker that was given up for dead and commits after another did its shard."""

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cluster.executor import Attempt
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.prepare import prepare
from concept_trak.store.codec import decode_blocks, read_footer
from concept_trak.store.compaction import committed
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Part
from concept_trak.store.records import ADOPT_TOLERANCE, commit_part
from concept_trak.store.store import Store
from jobs.verify import VerifyConfig, verify
from tests.jobs.world import files_under


@pytest.fixture
def finished(undisturbed, tmp_path) -> Store:
    """A copy of the finished audit."""
    return Store(str(shutil.copytree(undisturbed.found.store, tmp_path / "store", copy_function=shutil.copy2)))


@pytest.fixture
def standing(undisturbed, finished: Store) -> Part:
    """The part of the third shard, as a worker would hold it."""
    entry, fp = undisturbed.found.manifest["parts"][2], undisturbed.found.manifest["settings"]["fingerprints"]
    name = FeatureSet(fp["caption_trak"]).part(entry["shard"])
    read = list(decode_blocks(finished.read(name)))
    ids, weight, phi = tuple(i for b in read for i in b.ids), [b.weight for b in read], [b.phi() for b in read]
    rejects = read_footer(finished, name).rejects
    return Part(fp["caption_trak"], entry["shard"], ids, np.concatenate(weight), np.concatenate(phi), rejects)


late = partial(commit_part, dtype="float16", encoding="binary", seconds=1.0, attempt=7, host="zombie")


def test_a_zombie_that_did_the_same_work_returns_the_record_that_stands(world, finished: Store):
    prepared = prepare(world.config(finished.uri, model="pixels"))
    shard = prepared.plan[2]
    (before,) = committed(finished, prepared.work.features["caption_trak"], [shard.planned]).values()
    files = files_under(Path(finished.uri))
    (record,) = FeaturizeWorker(prepared.work)(
        FeaturizeTask(("caption_trak",), shard), Attempt(number=1, halvings=0)
    ).records
    assert record == before, "the record says who did the work first"
    assert files_under(Path(finished.uri)) == files


@pytest.mark.parametrize(("factor", "level"), [(1e-4, logging.INFO), (4 * ADOPT_TOLERANCE, logging.WARNING)])
def test_a_zombie_with_other_rounding_adopts_what_stands(finished: Store, standing: Part, caplog, factor, level):
    files = files_under(Path(finished.uri))
    with caplog.at_level(logging.INFO, "concept_trak.store.records"):
        record = late(finished, replace(standing, phi=standing.phi * np.float32(1 + factor)))
    assert record.host != "zombie"
    (said,) = caplog.records
    assert (said.levelno, "adopted" in said.getMessage(), standing.shard in said.getMessage()) == (level, True, True)
    assert files_under(Path(finished.uri)) == files


def test_a_zombie_with_other_samples_is_refused(finished: Store, standing: Part, undisturbed):
    files = files_under(Path(finished.uri))
    other = replace(standing, ids=("stranger", *standing.ids[1:]))
    with pytest.raises(ValueError, match=rf"{standing.shard}.*first difference stranger.*jobs.verify repair=true"):
        late(finished, other)
    assert files_under(Path(finished.uri)) == files
    assert verify(VerifyConfig(store=finished.uri, audit="first")) == 0
    undisturbed.require_same(Path(finished.uri))
