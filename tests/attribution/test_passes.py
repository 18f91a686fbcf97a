"""The benchmark of passes, small: every table stands, and the plain ways do the same work as ours."""

import numpy as np

from concept_trak.store.grams import read_gram
from concept_trak.store.identity import FeatureSet
from concept_trak.store.store import Store
from tests.benchmarks.on_storage import write
from tests.benchmarks.passes import compare, one_pass, page


def test_the_benchmark_of_passes_runs_and_tells(tmp_path):
    result = compare(tmp_path, n=60, k=16, queries=4, rounds=1)
    write(tmp_path / "60", 60, 16, 4, "float16")
    text = page(result | {"sizes": [one_pass(tmp_path / "60", 4)]})
    assert [row["dtype"] for row in result["storage"]] == [d for d in ("float16", "float32", "int8") for _ in range(2)]
    assert all(row["times_plain"] > 0 for row in result["memory"] + result["storage"])
    for heading in ("From memory", "From storage", "By size"):
        assert f"## {heading}" in text


def test_the_plain_way_reads_the_same_rows(tmp_path):
    b = write(tmp_path, 60, 16, 4, "float16")
    b.gram()
    (name,) = Store(str(tmp_path)).names("features/float16/grams")
    matrix, count = read_gram(
        Store(str(tmp_path)), FeatureSet("float16"), name.split("/")[-1].removesuffix(".safetensors")
    )
    rows = np.concatenate([phi.numpy() for phi in b.read()])
    assert count == len(rows) == 60
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-3)
    assert matrix.trace() > 0
