"""Jobs on a real Ray head that asks for a token: exit codes, attempts, logs, and the message for a wrong token."""

import hashlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen
from zipfile import ZipFile

import pytest

from jobs.configure import CONF, NOT_SHIPPED
from jobs.submitted_audits import checked
from tests.cluster.head import ROOT, TOKEN, environment, python, standing
from tests.cluster.wire import Wire

CONCEPTS = "concepts=[{name: a, prompt: a red cat, without_prompt: a cat}]"
PHRASE, SHIPPED_FILE_PHRASE = "hunter2-in-a-variable", "hunter2-in-a-file"
ONE_JOB = """
import os, sys
from cluster import submission
jobs, audit = submission.client(sys.argv[1]), sys.argv[3]
for code in (0, 3):
    told = "hashlib.sha256(os.environ['PHRASE'].encode()).hexdigest()"
    command = [sys.executable, "-c", f"import hashlib, os; print({told}); raise SystemExit({code})"]
    name = submission.submit(jobs, audit, command, sys.argv[2], {"PHRASE": os.environ["PHRASE"]}, [])
    print(name, "ended with", submission.follow(jobs, name, lambda text: print(text, end="")))
print(submission.attempts(jobs, audit), submission.attempts(jobs, "week"))
submission.attempts = lambda jobs, audit: []  # as another driver saw it before either had submitted
try:
    submission.submit(jobs, audit, ["true"], sys.argv[2], {}, [])
except ValueError as error:
    print("refused:", error)
"""
LONG_JOB = """
import sys
from cluster import submission
command = [sys.executable, "-uc", "import time; print('at work'); time.sleep(600)"]
print(submission.submit(submission.client(sys.argv[1]), "week-2", command, sys.argv[2], {}, []))
"""


@pytest.fixture(scope="module")
def whole_head(tmp_path_factory):
    with standing(tmp_path_factory.mktemp("head")) as head:
        yield head


@pytest.fixture(scope="module")
def head(whole_head):
    """The dashboard's address of a head of our own."""
    return whole_head.dashboard


def shipped(folder: Path) -> Path:
    """A working directory with our code in it, and with files of secrets beside that."""
    shutil.copytree(ROOT / "cluster", folder / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("s3.env", ".env", "cluster/.env.local", "server.key"):
        (folder / name).write_text(f"SECRET={SHIPPED_FILE_PHRASE}")
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audit=week-1"], "model.path is not set"),
        (["--config-name", "demo", "audit=week-1"], "is another folder on each node; give an absolute path or a URL"),
        ([], "a submitted audit needs a name"),
        (["audit=../week", "method=trak", "data.uri=/d", CONCEPTS], "expected letters, digits"),
        (["audit=week-1", "data.uri='https://host/a.parquet?sig=hunter2'"], "data.uri is a signed URL"),
        (["audit=week-1", "data.uri=https://host/a.parquet?sig=hunter2"], "cannot be read"),
        (["audit=week-1", "data.uri=s3://key:hunter2@bucket"], "data.uri carries credentials"),
        (["audit=week-1", "data.uri=${oc.env:HOME}"], "data.uri='${oc.env:HOME}' is an expression"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:20],
)
def test_a_mistake_is_found_before_anything_is_sent(arguments, says):
    """What the cluster would refuse, and what Ray would write into its logs."""
    paths = [] if "demo" in arguments or says.startswith("model") else ["model.path=/m", "store=s3://b/r"]
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the message is compared below
        checked([*arguments, *paths])
    assert says in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_the_arguments_of_the_cluster_are_those_that_were_given():
    shared = ["model.path=/m", "store=/s", "data.uri=/d", "cluster.shared_store=true", "method=trak"]
    name, arguments = checked(["audit=@weekly", *shared, CONCEPTS])
    assert re.fullmatch(r"\d{4}-W\d\d", name)
    assert arguments == [*shared, CONCEPTS, "cluster=ray", f"audit={name}"]
    assert checked(["audit=a", *shared, CONCEPTS, "cluster=local"])[1][-2:] == ["cluster=local", "audit=a"]


def verb(head: str, *said: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return python("-m", "jobs.submit", f"address={head}", *said, **({"RAY_AUTH_TOKEN": TOKEN} | more))


def test_what_a_run_needs_is_shipped_and_little_else(tmp_path):
    """By the code with which Ray packs a working directory."""
    from ray._private.runtime_env.packaging import create_package

    create_package(str(CONF.parent), tmp_path / "package.zip", True, excludes=list(NOT_SHIPPED))
    with ZipFile(tmp_path / "package.zip") as package:
        names, size = package.namelist(), sum(one.file_size for one in package.infolist())
    assert {"jobs/audit.py", "conf/weekly.yaml", "assets/demo/model_index.json"} <= set(names)
    assert not [name for name in names if name.startswith(("assets/benchmark", ".git/", ".venv", "results"))]
    assert size < 10e6, f"{size / 1e6:.0f} MB go to every node with every job"


@pytest.fixture(scope="module")
def submitted(whole_head, tmp_path_factory) -> "subprocess.CompletedProcess[str]":
    """A job that was submitted twice, and whose variables and folder hold secrets."""
    folder = str(shipped(tmp_path_factory.mktemp("shipped")))
    done = python("-c", ONE_JOB, whole_head.dashboard, folder, "week-1", RAY_AUTH_TOKEN=TOKEN, PHRASE=PHRASE)
    assert done.returncode == 0, done.stderr
    return done


def test_exit_codes_logs_and_attempts_come_back(submitted):
    assert submitted.stdout.count(hashlib.sha256(PHRASE.encode()).hexdigest()) == 2
    assert "week-1-1 ended with 0" in submitted.stdout
    assert "week-1-2 ended with 3" in submitted.stdout
    assert "['week-1-1', 'week-1-2'] []" in submitted.stdout
    assert "refused: the cluster refused week-1-1" in submitted.stdout
    assert "give the same command again for the next one" in submitted.stdout


@pytest.mark.usefixtures("submitted")
def test_no_secret_of_a_job_is_in_rays_logs_files_or_api(whole_head):
    """Everything that the head wrote is read."""
    files = [file for file in whole_head.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    texts = {file: file.read_bytes() for file in files}
    assert any(b"cluster.sealed" in text for text in texts.values()), "the logs that name the job were not read"
    assert any(file.name == "sealed.py" for file in files), "the folder of the job was not read"
    leaks = [file for file, text in texts.items() if PHRASE.encode() in text or SHIPPED_FILE_PHRASE.encode() in text]
    assert not leaks, f"{leaks} hold a secret"
    request = Request(f"{whole_head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urlopen(request, timeout=10) as response:
        jobs = response.read().decode()
    assert "CONCEPT_TRAK_SEALED" in jobs
    assert PHRASE not in jobs


@pytest.mark.parametrize(
    "token",
    [
        {"RAY_AUTH_TOKEN": "b" * 64},
        pytest.param({"RAY_AUTH_TOKEN": ""}, marks=pytest.mark.soak),
        pytest.param({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}, marks=pytest.mark.soak),
        pytest.param({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, marks=pytest.mark.soak),
    ],
    ids=["wrong", "missing", "mode not set", "a file that is not there"],
)
def test_a_token_that_does_not_fit_is_one_message(head, tmp_path, token):
    done = verb(head, "action=status", "audit=week-1", HOME=str(tmp_path), **token)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {head}: the cluster asks for a token and this one is missing or wrong")
    assert done.stderr.count("\n") == 1, f"more than one message: {done.stderr}"
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert "b" * 64 not in done.stderr
    assert not (tmp_path / ".ray").exists(), "a token was made up, and left in the home directory"


def test_a_token_in_a_file_opens_the_cluster(head, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    done = verb(head, "action=logs", "audit=nobody", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert done.returncode == 2
    assert done.stderr == f"error: {head} has no job of audit 'nobody'; expected an audit that was submitted there\n"


@pytest.mark.soak
def test_the_verbs_carry_an_audits_own_exit_code(head):
    """An audit without a model ends with 2 on the cluster, and so does the command that submitted it."""
    audit = ["--config-name", "demo", "audit=week-7", "model.path=/nowhere", "store=/tmp/nowhere", "data.uri=/nowhere",
             "cluster.shared_store=true"]  # fmt: skip
    done = verb(head, f"python={sys.executable}", "--", *audit)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "submitted  week-7-1" in done.stdout
    assert done.stderr == "", "Ray reports how it packs the folder"
    status = verb(head, "action=status", "audit=week-7")
    assert "week-7-1: FAILED, exit code 2" in status.stdout
    logs = verb(head, "action=logs", "audit=week-7")
    assert logs.returncode == 0
    assert "error: " in logs.stdout, "the job's own message is in its log"
    assert verb(head, "action=follow", "audit=week-7").returncode == 2


def followed(address: str, end: "Callable[[subprocess.Popen[str]], object]") -> tuple[int, str]:
    """The exit code and the one line of a command that follows week-2, until `end` ends that."""
    command = [sys.executable, "-m", "jobs.submit", f"address={address}", "action=follow", "audit=week-2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(RAY_AUTH_TOKEN=TOKEN), **pipes) as process:
        assert process.stdout is not None
        try:
            assert any("at work" in line for line in process.stdout)
            end(process)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert errors.count("\n") == 1, f"more than one message: {errors}"
    return process.returncode, errors


@pytest.mark.soak
def test_a_lost_connection_is_one_message_and_the_job_can_be_followed_again_and_stopped(head, tmp_path):
    submitted = python("-c", LONG_JOB, head, str(tmp_path), RAY_AUTH_TOKEN=TOKEN)
    assert submitted.stdout == "week-2-1\n", submitted.stderr
    wire = Wire(int(head.rpartition(":")[2]))
    code, line = followed(wire.address, lambda process: wire.cut())
    assert code == 4, line
    assert line.startswith("error: the connection to the cluster was lost while following week-2-1")
    assert f"`python -m jobs.submit address={wire.address} audit=week-2 action=status`" in line
    code, line = followed(head, lambda process: process.send_signal(signal.SIGINT))
    assert code == 130, line
    assert line.startswith("error: interrupted; week-2-1 goes on without this command. `python -m jobs.submit")
    assert "`action=stop` stops it" in line
    assert "RUNNING" in verb(head, "action=status", "audit=week-2").stdout, "the job does not depend on who follows it"
    assert verb(head, "action=stop", "audit=week-2").stdout == "week-2-1: stopping\n"
    end = time.monotonic() + 60
    while "STOPPED" not in (told := verb(head, "action=status", "audit=week-2").stdout):
        assert time.monotonic() < end, f"it does not stop: {told}"
    assert verb(head, "action=follow", "audit=week-2").returncode == 4, "a stopped job is not done"
    assert verb(head, "action=stop", "audit=week-2").stdout == "week-2-1: has ended already\n"


@pytest.mark.parametrize(
    "refusal",
    ["Request failed with status code 413: too large.", "Package size (600MiB) exceeds the maximum size of 5."],
)
def test_a_checkout_that_is_too_large_names_its_largest_file(tmp_path, refusal):
    from cluster import submission

    class Jobs(submission.JobSubmissionClient):
        def __init__(self):
            pass

        def list_jobs(self):
            return []

        def submit_job(self, **_):
            raise RuntimeError(refusal)

    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/pack").write_bytes(b"x" * 3_000_000)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/weights.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(ValueError, match=r"the cluster refused a-1: .* Its largest file is runs/weights.bin \(2 MB\)"):
        submission.submit(Jobs(), "a", ["true"], str(tmp_path), {}, [])
