"""Every file of the source index that is damaged is found, and named alone."""

from collections import Counter

import pyarrow as pa
import pytest

from concept_trak.audit.index_verification import verify_indices
from concept_trak.store.sources import SourceSet
from concept_trak.store.store import Store
from concept_trak.store.tables import to_parquet
from concept_trak.store.verify import SOUND
from tests.jobs_ops.audited import cut, flip

FOLDERS = {"": flip, "records": cut, "ids": flip, "surveys": cut, "unique": cut, "heavy": flip, "images/*": cut}


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexed")
    assert world.audit(folder, data="few").code == 0
    (indices,) = (folder / "sources").iterdir()
    words = pa.table({"word": [f"word {n}" for n in range(5_000)]})  # as of a data set with too many for one row each
    assert Store(str(folder)).create(SourceSet(indices.name).heavy("listing"), to_parquet(words))
    return folder


def test_what_is_sound_is_looked_at_once(store):
    findings = Counter(f.name for f in verify_indices(Store(str(store))))
    files = [str(f.relative_to(store)) for f in (store / "sources").rglob("*") if f.is_file()]
    assert findings == Counter(files)
    assert {f.what for f in verify_indices(Store(str(store)))} == {SOUND}


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_damaged_is_named_alone(store, folder):
    file = next(f for f in store.glob(f"sources/*/{folder}/*" if folder else "sources/*/*") if f.is_file())
    sound = file.read_bytes()
    FOLDERS[folder](file)
    try:
        damaged = [f.name for f in verify_indices(Store(str(store))) if f.damage]
    finally:
        file.write_bytes(sound)
    assert damaged == [str(file.relative_to(store))]
