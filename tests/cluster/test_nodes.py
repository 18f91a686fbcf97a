"""An existing cluster of several nodes: the code is shipped to it, and a node that goes away takes no item with it."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import workers
from workers import Settings

import cluster
from cluster.executor import Task
from cluster.on_ray import OnRay


@pytest.fixture
def nodes():
    """A head without CPUs, so that no work lands on it, and two nodes with one each."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def remove_node_of(victim, nodes):
    while not (victim.exists() and victim.read_text()):
        time.sleep(0.05)
    (node,) = (node for node in nodes.list_all_nodes() if node.node_id == victim.read_text())
    nodes.remove_node(node, allow_graceful=False)


@pytest.mark.soak
def test_the_item_of_a_removed_node_is_done_on_another(nodes, tmp_path):
    shipped, seen = tmp_path / "shipped", tmp_path / "seen"
    seen.mkdir()
    shutil.copytree(Path(cluster.__file__).parent, shipped / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).parent / "workers.py", shipped)
    for left_at_home in ("results", "outputs"):
        (shipped / left_at_home).mkdir()
        (shipped / left_at_home / "large.bin").touch()
    (shipped / "s3.env").touch()
    remover = threading.Thread(target=remove_node_of, args=(seen / "victim-1", nodes), daemon=True)
    remover.start()
    executor = OnRay(address=nodes.address, working_dir=str(shipped))
    outcomes = list(executor.map(Task(workers.OnNode, Settings(folder=str(seen))), ["victim", "a", "b", "c"]))
    remover.join()
    ended = {outcome.item: outcome.result[0] for outcome in outcomes}
    assert ended == {"victim": 2, "a": 1, "b": 1, "c": 1}, (
        "(attempts per item) only the removed node's item is repeated"
    )
    assert len(outcomes) == 4
    assert (seen / "victim-1").read_text() != (seen / "victim-2").read_text(), "done again on the removed node"
    for outcome in outcomes:
        _, place, files = outcome.result
        assert "working_dir_files" in Path(place).parts, f"the worker imported from {place}, not what was shipped"
        assert set(files) - {"__pycache__"} == {"cluster", "workers.py"}, (
            "results and secrets must not travel to the nodes"
        )
