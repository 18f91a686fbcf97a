"""The files for machines fit the schema that comes with Ray, and hold what the threat model promises."""

import json
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import Draft7Validator

from cluster.source import NEVER_SHIPPED
from tests.infra.manifests import ROOT

VM = sorted((ROOT / "infra/vm").glob("*.yaml"))
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
AWS = yaml.safe_load((ROOT / "infra/vm/aws.yaml").read_text())


@pytest.mark.parametrize("path", VM, ids=lambda path: path.stem)
def test_it_fits_rays_schema(path):
    config = yaml.safe_load(path.read_text())
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(config)] == []
    wrong = config | {"idle_timeout": 5}
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(wrong)], "this validation cannot fail"


def test_workers_are_spot_and_come_from_zero():
    worker = AWS["available_node_types"]["gpu_spot"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == AWS["max_workers"]
    assert AWS["available_node_types"]["head"]["resources"] == {"CPU": 0}, "a shard would land on the head"
    assert AWS["provider"]["cache_stopped_nodes"] is False


def test_nothing_is_open_to_the_internet_and_disks_are_encrypted():
    assert AWS["provider"]["use_internal_ips"]
    rules = AWS["provider"]["security_group"]["IpPermissions"]
    assert [rule["FromPort"] for rule in rules] == [22]
    assert all(r["CidrIp"].startswith("10.") for rule in rules for r in rule["IpRanges"])
    for node in AWS["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(d["Ebs"]["Encrypted"] for d in node["node_config"]["BlockDeviceMappings"])


@pytest.mark.parametrize("path", VM, ids=lambda path: path.stem)
def test_no_file_of_secrets_is_copied_to_a_node(path):
    assert set(NEVER_SHIPPED) <= set(yaml.safe_load(path.read_text())["rsync_exclude"])


def test_no_file_of_secrets_is_committed_or_sent_to_a_builder():
    assert set(NEVER_SHIPPED) <= set((ROOT / ".gitignore").read_text().splitlines())
    ignored = (ROOT / "infra/Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[-len(NEVER_SHIPPED) :] == [f"**/{name}" for name in NEVER_SHIPPED], "the last line that fits decides"


@pytest.mark.parametrize("path", VM, ids=lambda path: path.stem)
def test_nodes_install_what_the_locks_name_and_nothing_else(path):
    setup = yaml.safe_load(path.read_text())["setup_commands"]
    installs = [command for command in setup if "pip install" in command]
    assert len(installs) == 2
    assert all("--no-deps --require-hashes -r ~/concept-trak/infra/locked" in command for command in installs)
    assert setup[-1] == "~/venv/bin/pip check", "a lock that lacks something would be found by the first job"
