"""The commands of the manifests run in their local form: on a real head that asks for a token, on a small audit.

What differs is said here and nothing else: where the head, the store, the model and the data are, how large a worker
is, and which Python is asked; the image says PYTHONPATH, and so does the head here.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from concept_trak.store.manifest import Audit, read_manifest
from concept_trak.store.store import Store
from jobs.shapes import ShapesConfig, shapes
from tests.cluster.head import PATIENT, TOKEN, environment, free_ports, python, standing
from tests.infra.manifests import ROOT, of
from tests.infra.test_commands import expanded, submitted

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
ONE_JOB = """
import sys
from ray.job_submission import JobSubmissionClient
from cluster import submission
jobs = JobSubmissionClient(sys.argv[1])
sys.exit(submission.follow(jobs, jobs.submit_job(entrypoint=sys.argv[2]), lambda text: print(text, end="")))
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with standing(tmp_path_factory.mktemp("head"), PYTHONPATH=str(ROOT)) as head:
        yield head


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Store, list[str]]:
    """A store, and what makes the weekly audit small enough to be run here."""
    folder = tmp_path_factory.mktemp("weekly")
    assert shapes(ShapesConfig(out=str(folder / "shapes"), rows=8, files=1)) == 0
    return Store(str(folder / "store")), [
        f"store={folder}/store", "cluster.shared_store=true", f"model.path={ROOT}/assets/demo", "model.parameters=all",
        f"data.uri={folder}/shapes", "data.caption_column=caption", "data.shard_rows=8", "method=caption_trak",
        "projector.dim=64", "methods.caption_trak.train.times=[500]", "methods.caption_trak.query.points=11",
        "methods.caption_trak.query.every=4", "cluster.workers=1", "cluster.cpus=1", "cluster.gpus=0",
        "concepts=[{name: red, prompt: a red triangle, without_prompt: a triangle, samples: 2}]",
    ]  # fmt: skip


def test_the_cronjobs_command_audits_under_the_name_of_its_tick(head, small):
    store, sizes = small
    words, variables = submitted()
    here = [word.replace("http://concept-trak-head-svc:8265", head.dashboard) for word in words]
    cut = here.index("--")
    done = python(*here[1:cut], f"python={sys.executable}", *here[cut:], *sizes, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_manifest(Audit(store, variables["TICK"])) is not None


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])
def test_the_entrypoint_audits_without_code_being_sent(head, small, kind):
    """As in the image: head and workers find the code through PYTHONPATH, and the shell there names the audit."""
    store, sizes = small
    spec = of("RayJob", "once")["spec"] if kind == "RayJob" else of("RayCronJob", "raycronjob")["spec"]["jobTemplate"]
    entry = spec["entrypoint"].replace("python", shlex.quote(sys.executable), 1)
    done = python("-c", ONE_JOB, head.dashboard, f"{entry} {shlex.join(sizes)}", RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = (w.removeprefix("audit=") for w in expanded(spec["entrypoint"]) if w.startswith("audit="))
    assert read_manifest(Audit(store, name)) is not None


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[str]:
    """The dashboard of a head as the files for machines start it, its token in the file where they put it."""
    home, (gcs, dashboard, metrics, agent, grpc) = tmp_path_factory.mktemp("home"), free_ports(5)
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text(TOKEN)
    said, start = started_by("machines").split("~/venv/bin/ray")
    start = start.replace("6379", str(gcs)).replace("8080", str(metrics))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own:
        here = f"--dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --dashboard-agent-grpc-port={grpc} "
        here += f"--node-ip-address=127.0.0.1 --object-store-memory=100000000 --temp-dir={own} --block"
        usual = {k: v for k, v in environment(HOME=str(home)).items() if not k.startswith("RAY_")}
        with (home / "log").open("w") as log:
            shell = ["sh", "-c", f"export {said}; exec {Path(sys.executable).parent}/ray{start} {here}"]
            head = subprocess.Popen(shell, env=usual | PATIENT, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            head.terminate()
            head.wait(60)


def started_by(file: str) -> str:
    return yaml.safe_load((ROOT / f"infra/vm/{file}.yaml").read_text())["head_start_ray_commands"][1]


def test_a_machine_starts_a_head_that_asks_for_the_token(machine):
    """Run as `machines.yaml` has it; that of a cloud has besides only the file that the launcher writes there."""
    assert started_by("aws") == f"{started_by('machines')} --autoscaling-config=~/ray_bootstrap_config.yaml"
    asks = ("-c", "import sys; from cluster.submission import attempts, client; attempts(client(sys.argv[1]), 'none')")
    end = time.monotonic() + 200
    while (done := python(*asks, machine, RAY_AUTH_TOKEN=TOKEN)).returncode:
        assert time.monotonic() < end, f"who has the token is not let in: {done.stderr}"
    assert "the cluster asks for a token" in python(*asks, machine, RAY_AUTH_TOKEN="b" * 64).stderr
