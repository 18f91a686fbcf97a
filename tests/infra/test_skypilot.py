"""The SkyPilot file fits SkyPilot's schema, and what it runs is bash that keeps to itself.

`skypilot.json` holds the schemas of a task and of its resources, from sky/utils/schemas.py of SkyPilot 0.14.1.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.infra.manifests import ROOT

TASK = yaml.safe_load((ROOT / "infra/skypilot/audit.yaml").read_text())
SCHEMAS = json.loads(Path(__file__).with_name("skypilot.json").read_text())


def errors(part: str, value: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMAS[part]).iter_errors(value)]


@pytest.mark.parametrize(("part", "value"), [("task", TASK), ("resources", TASK["resources"])])
def test_it_fits_skypilots_schema(part, value):
    assert errors(part, value) == []
    assert errors(part, value | {"no_such_key": 1}), "this validation cannot fail"
    assert errors(part, value | {"num_nodes" if part == "task" else "use_spot": "two"})


@pytest.mark.parametrize("key", ["setup", "run"])
def test_bash_can_read_what_it_runs(key):
    assert subprocess.run(["bash", "-n"], input=TASK[key], text=True, check=False).returncode == 0


def test_machines_are_spot_the_token_is_a_secret_and_no_port_is_opened():
    assert TASK["resources"]["use_spot"] is True
    assert "ports" not in TASK["resources"]
    assert TASK["secrets"] == {"RAY_AUTH_TOKEN": None}, "a token in a file is no secret"
    assert "RAY_AUTH_MODE=token" in TASK["run"]


def test_nodes_install_what_the_locks_name_and_nothing_else():
    installs = [line for line in TASK["setup"].splitlines() if "pip install" in line]
    assert installs
    assert all("--no-deps --require-hashes -r infra/locked" in line for line in installs)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_each_node_starts(tmp_path, rank):
    """Run with a fake interpreter and a fake `ray`, which note how they are called.

    On the head the interpreter waits for `ray`, which starts beside it, as `infra/nodes.py` does.
    """
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    for name in ("python", "ray"):
        code = {
            "python": f'[ $SKYPILOT_NODE_RANK = 1 ] || until grep -qs "^ray" "{tmp_path}/calls"; do sleep 0.01; done',
            "ray": '[ "$(basename "$0") $2" = "ray --head" ] && exec sleep 60; exit 1',
        }[name]
        (programs / name).write_text(f'#!/bin/bash\necho "$(basename "$0") $*" >> "{tmp_path}/calls"\n{code}\n')
        (programs / name).chmod(0o755)
    job = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
           "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "1",
           "ARGUMENTS": "--config-name weekly audit=a"}  # fmt: skip
    done = subprocess.run(["bash", "-c", TASK["run"]], env=job, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    offer = "--temp-dir=/tmp/ray-concept-trak --num-gpus=1 --block"
    if rank:
        assert calls == [
            "python infra/nodes.py 10.0.0.1:26379 1 600", f"ray start --address=10.0.0.1:26379 {offer}"
        ]  # fmt: skip
        return
    assert sorted(calls) == sorted([
        f"ray start --head --port=26379 --include-dashboard=false {offer}",
        "python infra/nodes.py 10.0.0.1:26379 2 600",
        "python -m jobs.audit cluster=ray cluster.address=10.0.0.1:26379 --config-name weekly audit=a",
    ])  # fmt: skip
