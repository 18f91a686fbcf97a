"""The image: linted, pinned, without rights, and its install steps run in a clean environment."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from tests.infra.image import DOCKERFILE, instructions, texts
from tests.infra.manifests import ROOT

HADOLINT = Path(sys.executable).parent / "hadolint"


def test_the_linter_has_nothing_to_say():
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_linter_can_say_something(tmp_path):
    wrong = DOCKERFILE.read_text().replace("--no-install-recommends ", "")
    (tmp_path / "Dockerfile").write_text(wrong)
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert "DL3015" in done.stdout


def test_it_runs_as_the_user_of_the_pods_and_asks_for_a_token():
    assert instructions()[-2:] == [("USER", "1000:1000"), ("CMD", '["python", "-m", "jobs.audit"]')]
    (variables,) = texts("ENV")
    assert "RAY_AUTH_MODE=token" in variables
    assert "HF_HUB_OFFLINE=1" in variables


def test_everything_is_pinned():
    (base,) = texts("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base), "a tag can be moved"
    installs = [words for text in texts("RUN") for words in re.findall(r"pip install [^;&]+", text)]
    assert len(installs) == 3
    for words in installs:
        assert "--no-cache-dir --no-deps" in words, "what no lock names must not be installed"
        assert "--require-hashes" in words or "--index-url" in words, "only another build of torch has no hash here"


def test_what_changes_most_comes_last():
    """Else a changed line of code would install torch again."""
    words = [f"{word} {text}" for word, text in instructions()]
    last_install = max(i for i, text in enumerate(words) if "pip install" in text)
    code = [i for i, text in enumerate(words) if text.startswith("COPY") and " /app/" in text]
    assert min(code) > last_install
    first = next(text for text in words if "pip install" in text)
    assert "-r infra/locked-cuda.txt" in first, "the largest layer, which changes least, is the first"


def test_the_code_is_all_there_and_nothing_else_is_sent():
    sources = [words.split()[:-1] for words in texts("COPY")]
    copied = {name for names in sources for name in names}
    assert {"concept_trak", "cluster", "serving", "jobs", "conf"} <= copied
    allowed = (ROOT / "infra/Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[0] == "*", "a store, a .git or a key in the folder would travel"
    for name in copied:
        assert (ROOT / name).exists()
        assert any(fnmatch(name, line[1:]) for line in allowed if line.startswith("!")), f"{name} is not let through"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_its_install_steps_run_in_a_clean_environment(tmp_path):
    """Every RUN that installs Python packages, in a new environment, with the files that COPY brings and no others.

    TORCH_INDEX is the index that pip is set up with, so that torch is the build that this machine has; it is empty for
    the build with CUDA. Nothing is compiled, which takes minutes.
    """
    build, app = tmp_path / "build", tmp_path / "app"
    venv.create(tmp_path / "venv", with_pip=True)
    path = f"{tmp_path}/venv/bin:/usr/bin:/bin"
    kept = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k in ("HOME", "LANG")}
    index = own_index() if torch.version.cuda is None else ""
    variables = kept | {"PATH": path, "TORCH_INDEX": index, "PIP_NO_COMPILE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for word, text in instructions():
        if word == "COPY":
            *names, target = text.split()
            for name in names:
                place = build / target / Path(name).name if target.endswith("/") else build / target
                bring(ROOT / name, Path(target.replace("/app", str(app))) if "/app" in target else place)
        elif word == "RUN" and "pip" in text:
            subprocess.run(["sh", "-c", text], cwd=build, env=variables, check=True)
    checked = subprocess.run(
        [tmp_path / "venv/bin/python", "-m", "jobs.audit", "--config-name", "weekly", "store=/proc/nowhere"],
        cwd=tmp_path, env=variables | {"PYTHONPATH": str(app)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 2, checked.stdout + checked.stderr
    assert "set cluster.shared_store=true" in checked.stderr, "the verb runs as far as its first check of the world"
    imports = (
        "import ray, diffusers, transformers, s3fs, cluster.on_ray, cluster.submission, concept_trak.audit.featurize"
    )
    subprocess.run([tmp_path / "venv/bin/python", "-c", imports], cwd=app, env=variables, check=True)
    freeze = [tmp_path / "venv/bin/pip", "freeze", "--all", "--exclude=pip"]
    frozen = subprocess.run(freeze, env=variables, check=True, capture_output=True, text=True).stdout
    pinned = [(ROOT / name).read_text() for name in ("infra/constraints.txt", "infra/locked-cuda.txt")]
    assert not versions(frozen) - set().union(*map(versions, pinned)), (
        "installed otherwise than pinned; the package itself would hide the code that a job ships"
    )


def own_index() -> str:
    """The index that pip asks where nobody says another."""
    from pip._internal.models.index import PyPI

    return os.environ.get("PIP_INDEX_URL") or PyPI.simple_url


def versions(lines: str) -> set[tuple[str, str]]:
    """(name, version) of every line `name==version`, however the name is spelt.

    A build such as +cpu, and what follows a version in a lock, are left out.
    """
    parts = [line.partition("==") for line in lines.splitlines() if not line.startswith("#")]
    return {(name.lower().replace("_", "-"), version.partition("+")[0].partition(" ")[0]) for name, _, version in parts}


def bring(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def test_shell_words_of_every_run_are_readable():
    for text in texts("RUN"):
        assert shlex.split(text)
