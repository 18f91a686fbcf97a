"""What Prometheus is served while an audit runs on a standing cluster, scraped from a real node of it."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.executor import Failure, Load, Outcome
from jobs.execute import ClusterConfig, meter
from jobs.metrics import METRICS, Meter
from tests.cluster.head import TOKEN, environment, standing
from tests.faults.watcher import until

ROOT = Path(__file__).resolve().parents[2]
OURS = {"audit", *(tag for metric in METRICS.values() for tag in metric.tags)}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with standing(tmp_path_factory.mktemp("head"), RAY_metrics_report_interval_ms="200") as head:
        yield head


def scraped(address: str) -> dict[tuple[str, ...], float]:
    """The project's numbers on a node: the name without `ray_concept_trak_`, and the values of its own tags."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except urllib.error.URLError:  # the node's agent is not up yet
        return {}
    samples = [s for family in families for s in family.samples if s.name.startswith("ray_concept_trak_")]
    return {
        (s.name.removeprefix("ray_concept_trak_"), *(v for k, v in sorted(s.labels.items()) if k in OURS)): s.value
        for s in samples
    }


@pytest.mark.soak
def test_a_run_on_a_cluster_is_scraped_while_it_happens_and_after(head, tmp_path):
    command = [sys.executable, "-m", "metered", str(tmp_path), head.address]
    variables = environment(RAY_AUTH_TOKEN=TOKEN, PYTHONPATH=f"{ROOT}:{Path(__file__).parent}")
    driver = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = {}

    def shows(expected: dict[tuple[str, ...], float]) -> bool:
        assert driver.poll() is None, driver.stderr.read().decode()[-3000:]
        time.sleep(0.2)  # as long as the head takes between two reports
        seen.clear()
        seen.update(scraped(head.metrics))
        return expected.items() <= seen.items()

    try:
        both_at_work = {
            ("workers", "week-1", "working"): 2,
            ("workers", "week-1", "idle"): 0,
            ("items", "week-1", "featurize", "running"): 2,
            ("items", "week-1", "featurize", "done"): 0,
            ("queue_depth", "week-1", "featurize"): 1,
        }
        until(lambda: shows(both_at_work), "two of three items are running", 90)
        (tmp_path / "open").touch()
        in_the_end = {
            ("items", "week-1", "featurize", "done"): 2,
            ("items", "week-1", "featurize", "failed"): 1,
            ("items", "week-1", "featurize", "running"): 0,
            ("queue_depth", "week-1", "featurize"): 0,
            **{("workers", "week-1", state): 0 for state in ("pending", "building", "idle", "working")},
            ("samples_total", "week-1", "featurize"): 8,
            ("bytes_total", "week-1", "featurize"): 2000,
            ("rejects_total", "week-1", "no_caption"): 2,
            ("retries_total", "week-1", "memory", "featurize"): 2,
            ("retries_total", "week-1", "application", "featurize"): 2,
        }
        until(lambda: shows(in_the_end), f"these numbers: {in_the_end}", 60)
        assert seen.pop(("seconds_total", "week-1", "featurize")) > 0
        assert set(seen) == set(in_the_end), "series that nobody asked for: is something tagged by shard or sample?"
    finally:
        driver.communicate(timeout=30)


def test_what_is_recorded_is_a_row_of_the_table_with_its_tags():
    said = []
    meter = Meter(lambda name, value, **tags: said.append((name, value, set(tags))))
    meter.begin("gram")
    meter.at(1, 0, Load(1, 2, {"working": 1}, {"memory": 1}))
    meter.at(1, 0, Load(1, 2, {"working": 1}, {"memory": 1}))
    failed = Outcome(item="a", result=None, failure=Failure.APPLICATION, message="trouble", error="Traceback: trouble",
                     attempts=2, seconds=1.5, host="")  # fmt: skip
    meter.ended(failed)
    assert all(tags == set(METRICS[name].tags) for name, _, tags in said)
    assert [value for name, value, _ in said if name == "concept_trak_retries"] == [1], "a retry is counted once"
    assert "concept_trak_samples" not in {name for name, _, _ in said}, "a failed item has done no sample"


@pytest.mark.parametrize("kind", ["serial", "local"])
def test_only_a_standing_cluster_is_told(kind):
    """The others have nobody who scrapes."""
    assert meter(ClusterConfig(kind=kind), None) == Meter()


def test_without_a_cluster_nothing_of_ray_is_imported():
    code = "import sys, cluster.metrics, cluster.serial; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
