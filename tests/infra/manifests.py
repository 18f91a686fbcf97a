"""The Kubernetes manifests as kubectl renders them, the pods in them, and the published schemas they must fit."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra/kubernetes"
WHOLE = ("recurring", "once", "raycronjob", "serve")
VERSION = "1.34"


@cache
def documents(name: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k infra/kubernetes/<name>` would send; not to be changed."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: what it makes of infra/kubernetes stays unchecked")
    command = ["kubectl", "kustomize", str(KUBERNETES / name)]
    sent = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(sent))


def of(kind: str, name: str) -> dict[str, Any]:
    (found,) = (document for document in documents(name) if document["kind"] == kind)
    return found


def cluster(name: str) -> dict[str, Any]:
    """The spec of the Ray cluster that a whole makes."""
    (spec,) = (_cluster(document) for document in documents(name) if document["apiVersion"].startswith("ray.io/"))
    return spec


def _cluster(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    match document["kind"]:
        case "RayCronJob":
            return spec["jobTemplate"]["rayClusterSpec"]
        case "RayJob":
            return spec["rayClusterSpec"]
        case "RayService":
            return spec["rayClusterConfig"]
        case _:
            return spec


def pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of a whole, and what it is of."""
    spec = cluster(name)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    for document in documents(name):
        if document["kind"] == "CronJob":
            yield "submitter", document["spec"]["jobTemplate"]["spec"]["template"]


def faults(document: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest by its published schema; unknown fields are wrong."""
    if not document["apiVersion"].startswith("ray.io/"):
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        return []
    if document["apiVersion"] != "ray.io/v1" or set(document) != {"apiVersion", "kind", "metadata", "spec"}:
        return [f"not a ray.io/v1 document: {sorted(document)}"]
    reference = {"$ref": f"kuberay#/$defs/{document['kind']}"}
    return [
        error.message for error in Draft202012Validator(reference, registry=_registry()).iter_errors(document["spec"])
    ]


@cache
def _registry() -> Registry:
    published = Path(kubernetes_validate.__file__).parent / f"kubernetes-json-schema/v{VERSION}.0-local-strict"
    known = {
        "kubernetes": json.loads((published / "_definitions.json").read_text()),
        "kuberay": json.loads((Path(__file__).parent / "kuberay.json").read_text()),
    }
    return Registry().with_resources((name, Resource(schema, DRAFT202012)) for name, schema in known.items())
