"""The manifests fit their published schemas, and keep what the threat model promises."""

import copy
import importlib
import re
import warnings
from typing import Any

import pytest
import yaml

from concept_trak import UserError
from concept_trak.config import build
from jobs.configure import CONF
from serving.listen import TOKEN, ServeConfig, own_token
from tests.configured import configure_both
from tests.infra.manifests import ROOT, WHOLE, cluster, documents, faults, of, pods

PODS = [(whole, name) for whole in WHOLE for name in ("head", "gpu-spot", "cpu-spot")] + [("recurring", "submitter")]
SECRET = re.compile("TOKEN|SECRET|KEY|PASSWORD")


def pod(whole: str, name: str) -> dict[str, Any]:
    return dict(pods(whole))[name]


@pytest.mark.parametrize("whole", WHOLE)
def test_every_manifest_fits_its_schema(whole):
    wrong = {d["metadata"]["name"]: found for d in documents(whole) if (found := faults(d))}
    assert not wrong


@pytest.mark.parametrize(
    ("whole", "kind", "path", "value"),
    [
        ("recurring", "CronJob", ("spec", "concurrencyPolicies"), "Forbid"),
        ("recurring", "CronJob", ("spec", "jobTemplate", "spec", "template", "spec", "runAsNonRoot"), True),
        ("recurring", "RayCluster", ("spec", "authOption"), {"mode": "token"}),
        ("recurring", "RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "images"), "x"),
        ("recurring", "RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("recurring", "RayCluster", ("spec", "authOptions", "mode"), "tokens"),
        ("once", "RayJob", ("spec", "concurrencyPolicy"), "Forbid"),
        ("once", "RayJob", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        ("raycronjob", "RayCronJob", ("spec", "startingDeadlineSeconds"), 1),
        ("serve", "RayService", ("spec", "rayClusterSpec"), {}),
        ("serve", "RayService", ("spec", "rayClusterConfig", "headGroupSpec", "serviceType"), "Any"),
    ],
)
def test_a_mistake_is_found(whole, kind, path, value):
    """That the validation can fail, for each kind and at depth."""
    document = copy.deepcopy(of(kind, whole))
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert faults(document)


def test_all_clusters_are_the_same_one():
    assert cluster("once") == cluster("raycronjob") == cluster("recurring")
    kinds = {whole: sorted(d["kind"] for d in documents(whole) if "Ray" in d["kind"]) for whole in WHOLE}
    assert kinds == {
        "recurring": ["RayCluster"], "once": ["RayJob"], "raycronjob": ["RayCronJob"], "serve": ["RayService"]
    }  # fmt: skip
    (head,) = copy.deepcopy(cluster("serve")["headGroupSpec"]["template"]["spec"]["containers"])
    assert cluster("serve")["workerGroupSpecs"] == cluster("once")["workerGroupSpecs"]
    (usual,) = cluster("once")["headGroupSpec"]["template"]["spec"]["containers"]
    assert head.pop("env"), "the token of the server"
    assert head["ports"].pop() == {"name": "serve", "containerPort": 8000}
    assert head == usual


def test_a_tick_never_overlaps_another_and_a_mistake_is_not_repeated():
    spec = of("CronJob", "recurring")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] >= 3600, "a tick missed while the cluster was down is lost"
    job = spec["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] < 7 * 24 * 3600, "one that hangs would keep the next tick from starting"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert job["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy asks for it"


@pytest.mark.parametrize(("whole", "name"), PODS)
def test_pods_have_no_rights_they_do_not_need(whole, name):
    spec = pod(whole, name)["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000, "the user of the image"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # The head's token is the autoscaler's, which makes and removes workers.
    assert spec.get("automountServiceAccountToken", True) == (name == "head")
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for what in ("cpu", "memory", "ephemeral-storage"):
            assert container["resources"]["requests"][what], f"{what}: the scheduler has to know"
            assert container["resources"]["limits"][what]


@pytest.mark.parametrize(("whole", "name"), PODS)
def test_secrets_are_named_and_never_written(whole, name):
    (container,) = pod(whole, name)["spec"]["containers"]
    for variable in container.get("env", []):
        if SECRET.search(variable["name"]):
            assert "value" not in variable
            assert "secretKeyRef" in variable["valueFrom"]
    assert not [d["metadata"]["name"] for d in documents(whole) if d["kind"] == "Secret"], "values would stand in git"


@pytest.mark.parametrize("whole", WHOLE)
def test_the_token_is_asked_for_and_the_dashboard_is_not_exposed(whole):
    spec = cluster(whole)
    assert spec["authOptions"] == {"mode": "token", "secretName": "concept-trak-ray-token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not {d["kind"] for d in documents(whole)} & {"Ingress", "Service", "Gateway", "HTTPRoute"}


def test_who_submits_has_the_clusters_token_and_no_storage():
    (container,) = pod("recurring", "submitter")["spec"]["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["RAY_AUTH_MODE"]["value"] == "token"
    reference = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": cluster("recurring")["authOptions"]["secretName"], "key": "auth_token"}
    assert "envFrom" not in container


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "this test reads no other selectors"
    return selector.get("matchLabels", {}).items() <= labels.items()


def reaches(source: dict[str, str], namespace: str, target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of a namespace open a TCP connection to a pod of concept-trak."""
    policies = [d["spec"] for d in documents("recurring") if d["kind"] == "NetworkPolicy"]
    of_target = [p for p in policies if matches(p["podSelector"], target) and "Ingress" in p["policyTypes"]]
    rules = [rule for policy in of_target for rule in policy.get("ingress", [])]
    if not of_target:
        return True
    return any(
        ("ports" not in rule or any((p["port"], p["protocol"]) == (port, "TCP") for p in rule["ports"]))
        and any(_is(peer, source, namespace) for peer in rule["from"])
        for rule in rules
    )


def _is(peer: dict[str, Any], labels: dict[str, str], namespace: str) -> bool:
    here = {"kubernetes.io/metadata.name": namespace}
    inside = matches(peer["namespaceSelector"], here) if "namespaceSelector" in peer else namespace == "concept-trak"
    return inside and matches(peer.get("podSelector", {}), labels)


def test_the_network_policy_lets_in_only_who_is_named():
    head = pod("recurring", "head")["metadata"]["labels"]
    worker = pod("recurring", "gpu-spot")["metadata"]["labels"]
    submitter = pod("recurring", "submitter")["metadata"]["labels"]
    inside, any_pod = "concept-trak", {"app": "anything"}
    assert reaches(worker, inside, head, 6379)
    assert reaches(head, inside, worker, 10002)
    assert reaches(submitter, inside, head, 8265)
    assert reaches(any_pod, "kuberay-operator", head, 8265)
    assert reaches(any_pod, "monitoring", worker, 8080)
    assert not reaches(submitter, inside, head, 6379), "who submits needs the Jobs API alone"
    assert not reaches(any_pod, inside, head, 8265)
    assert not reaches(submitter, "default", head, 8265), "a label in another namespace is no right"
    assert not reaches(any_pod, "monitoring", head, 8265)
    assert not reaches(worker, inside, submitter, 22)
    assert not reaches(any_pod, "default", any_pod, 80), "nothing reaches a pod that is not named"


def serve_config() -> dict[str, Any]:
    """What Ray Serve gets."""
    return yaml.safe_load(of("RayService", "serve")["spec"]["serveConfigV2"])


def test_ray_serve_takes_its_configuration_and_the_verb_its_keys():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray Serve's own use of pydantic
        from ray.serve.schema import ServeDeploySchema

        assert ServeDeploySchema.model_validate(serve_config()).applications[0].name == "concept-trak"
    (app,) = serve_config()["applications"]
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    config = build(ServeConfig, app["args"])
    assert config.replicas > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN, raising=False)
        with pytest.raises(UserError, match="other machines can reach this address"):
            own_token(config.host)


def test_the_processes_of_the_server_fit_the_pods():
    config = build(ServeConfig, serve_config()["applications"][0]["args"]).cluster
    groups = {group["groupName"]: group for group in cluster("serve")["workerGroupSpecs"]}
    pod_of = {name: g["template"]["spec"]["containers"][0]["resources"]["requests"] for name, g in groups.items()}
    assert config.cpus <= float(pod_of["gpu-spot"]["cpu"])
    assert config.gpus <= float(pod_of["gpu-spot"]["nvidia.com/gpu"])
    shares = int(float(pod_of["cpu-spot"]["cpu"]) // config.cpus)
    assert shares * config.memory <= int(pod_of["cpu-spot"]["memory"].removesuffix("Gi")) * 2**30


def test_the_server_has_its_token_from_a_secret_and_one_open_port():
    (container,) = cluster("serve")["headGroupSpec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert variable["name"] == TOKEN
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "concept-trak-serve-token", "key": "token"}
    for group in cluster("serve")["workerGroupSpecs"]:
        assert "env" not in group["template"]["spec"]["containers"][0], "the front alone has the token"
    (policy,) = (d for d in documents("serve") if d["metadata"]["name"] == "asking")
    (rule,) = policy["spec"]["ingress"]
    (port,) = rule["ports"]
    assert port["port"] == serve_config()["http_options"]["port"] == container["ports"][-1]["containerPort"]
    assert rule["from"], "only who is named"


def test_models_are_written_by_one_pod_alone_and_it_has_no_network():
    (loader,) = documents("models")
    assert not faults(loader)
    (container,) = loader["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert loader["spec"]["securityContext"] == pod("recurring", "gpu-spot")["spec"]["securityContext"]
    (claim,) = (d for d in documents("recurring") if d["kind"] == "PersistentVolumeClaim")
    assert loader["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "one that is read-only everywhere stays empty"
    for _, other in pods("recurring"):
        mounts = [m for c in other["spec"]["containers"] for m in c["volumeMounts"] if m["name"] == "models"]
        assert all(mount["readOnly"] for mount in mounts)
    selectors = [d["spec"]["podSelector"] for d in documents("recurring") if d["kind"] == "NetworkPolicy"]
    covering = [s for s in selectors if matches(s, loader["metadata"]["labels"])]
    assert covering == [{}], "only the policy that lets nothing in or out"


def test_versions_are_those_of_the_constraints():
    constraints = (ROOT / "infra/constraints.txt").read_text()
    (ray,) = re.findall(r"^ray==(.*)$", constraints, re.M)
    assert cluster("recurring")["rayVersion"] == ray
    images = {c["image"] for whole in WHOLE for _, pod in pods(whole) for c in pod["spec"]["containers"]}
    (image,) = images  # one for all, from kubernetes/image
    assert re.fullmatch(r"registry\.example/concept-trak@sha256:[0-9a-f]{64}", image), "a tag can be moved"


def test_a_worker_of_the_weekly_audit_fits_the_pod_it_is_meant_for():
    from concept_trak.config import AuditConfig

    asked = configure_both(AuditConfig, "weekly", [])[1].cluster
    assert (CONF / "weekly.yaml").exists()
    (gpu,) = (g for g in cluster("recurring")["workerGroupSpecs"] if g["groupName"] == "gpu-spot")
    has = gpu["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert asked.cpus <= float(has["cpu"])
    assert asked.gpus <= float(has["nvidia.com/gpu"])
    assert 0 < asked.workers <= gpu["maxReplicas"], "0 asks for as many as fit now, and from zero nodes none do"


def test_the_head_takes_no_shards_and_every_node_is_scraped():
    spec = cluster("recurring")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert str(ports["metrics"]) == group["rayStartParams"]["metrics-export-port"]
    assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])
    assert all("spot" in str(g["template"]["spec"]["nodeSelector"]) for g in spec["workerGroupSpecs"])
