"""Every command that infra/ shows or ships is read by what would run it: our verbs, or Ray's own command line."""

import re
import shlex
import subprocess
from importlib import import_module

import pytest
import yaml

from concept_trak.config import AuditConfig
from jobs.submit import SubmitConfig
from tests.configured import configure, configure_both
from tests.infra.manifests import ROOT, cluster, of, pods

PAGES = ("infra/README.md", "infra/runbook.md")
VM = sorted((ROOT / "infra/vm").glob("*.yaml"))
OWN = "/tmp/ray-concept-trak"


def ray_accepts(words: list[str]) -> bool:
    """Whether `ray start` with these arguments is one that Ray's command line understands; nothing is started."""
    from ray.scripts.scripts import start

    return bool(start.make_context("start", list(words)))


def expanded(command: str) -> list[str]:
    """The words of an entrypoint as the shell that runs it would make them."""
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], check=True, capture_output=True, text=True)
    return said.stdout.splitlines()


def submitted() -> tuple[list[str], dict[str, str]]:
    """The words of the CronJob's container with its variables filled in, and those variables."""
    (container,) = dict(pods("recurring"))["submitter"]["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    tick = next(v for v in container["env"] if v["name"] == "TICK")
    assert tick["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['batch.kubernetes.io/job-name']"
    name = f"{of('CronJob', 'recurring')['metadata']['name']}-29384720"  # minutes since 1970, as Kubernetes names it
    return [word.replace("$(TICK)", name) for word in words], {"TICK": name}


def test_the_cronjob_submits_an_audit_named_by_its_tick():
    words, variables = submitted()
    assert words[:3] == ["python", "-m", "jobs.submit"]
    cut = words.index("--")
    own = configure(SubmitConfig, "submit", words[3:cut])
    assert own.address == "http://concept-trak-head-svc:8265", "KubeRay names the service of a head so"
    audit, run = configure_both(AuditConfig, "config", words[cut + 1 :])
    audit = audit.complete()
    assert audit.audit == variables["TICK"]
    assert run.cluster.kind == "ray"


@pytest.mark.parametrize(("whole", "name"), [("once", "once"), ("raycronjob", r"weekly-20\d\d-W\d\d")])
def test_the_entrypoints_are_audits(whole, name):
    spec = of("RayJob", "once")["spec"] if whole == "once" else of("RayCronJob", whole)["spec"]["jobTemplate"]
    words = expanded(spec["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.audit"]
    audit, run = configure_both(AuditConfig, "config", words[3:])
    audit = audit.complete()
    assert re.fullmatch(name, audit.audit)
    assert run.cluster.kind == "ray"


def test_the_parameters_of_ray_are_rays_own():
    spec = cluster("recurring")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert ray_accepts([f"--{name}={value}" for name, value in group["rayStartParams"].items()])


def test_a_parameter_that_ray_does_not_know_is_found():
    import click

    with pytest.raises(click.NoSuchOption):
        ray_accepts(["--dashboard-hosts=0.0.0.0"])


@pytest.mark.parametrize("path", VM, ids=lambda path: path.stem)
def test_machines_start_ray_with_a_token_and_a_dashboard_on_loopback(path):
    config = yaml.safe_load(path.read_text())
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, start = config[key]
        assert stop == f"~/venv/bin/python ~/concept-trak/infra/vm/stop_own_ray.py {OWN}", "others may run a Ray too"
        assert f"--temp-dir={OWN} " in start
        *variables, program, verb = start.partition(" --")[0].split()
        assert "RAY_AUTH_MODE=token" in variables
        assert (program, verb) == ("~/venv/bin/ray", "start")
        assert ray_accepts(shlex.split(start)[len(variables) + 2 :])
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"], "the place where Ray looks for the token"


def commands() -> list[str]:
    """Every command of the pages, fenced or in a line."""
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    fenced = "\n".join(body.partition("\n")[2] for body in text.split("```")[1::2])
    inline = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    lines = [line.split("  #")[0].strip() for line in fenced.splitlines() if line.strip()]
    tools = ("python ", "kubectl ", "ray ", "docker ", "RAY_AUTH_MODE=token ")
    return [c for c in (*lines, *inline) if c.startswith(tools)]


def test_the_pages_show_commands():
    assert len(commands()) > 12


@pytest.mark.parametrize("command", [c for c in commands() if "python -m" in c])
def test_verbs_on_the_pages_are_accepted(command):
    words = shlex.split(command.replace("store=…", "store=results").partition("python -m ")[2])
    verb = import_module(words[0]).__name__.removeprefix("jobs.")
    own, _, audit = " ".join(words[1:]).partition("-- ")
    assert configure(getattr(import_module(words[0]), f"{verb.title()}Config"), verb, own.split())
    assert not audit or configure(AuditConfig, "config", audit.split()).audit


@pytest.mark.parametrize("command", [c for c in commands() if "infra/" in c])
def test_files_on_the_pages_exist(command):
    for path in re.findall(r"infra/[\w./-]+", command):
        assert (ROOT / path).exists(), f"{command}: {path} is not there"


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_pages_lead_somewhere(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert all((folder / link).exists() for link in links), links


def test_a_page_is_a_page():
    """A runbook that is longer is not read when it is needed."""
    assert len((ROOT / "infra/runbook.md").read_text().split()) < 700
    threats = (ROOT / "infra/README.md").read_text().partition("## Threat model")[2]
    assert len(threats.split()) < 450
