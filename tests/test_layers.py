"""Imports point down, as pyproject.toml says it to import-linter; a broken layer fails."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("concept_trak", "cluster", "serving", "jobs")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the packages of a folder, whatever is installed."""
    program = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_imports_point_down():
    checked = lint(ROOT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("concept_trak/store/part.py", "import concept_trak.audit.plan", "concept_trak.store -> concept_trak.audit"),
        ("concept_trak/attribution/fisher.py", "import concept_trak.store.store", "concept_trak.attribution.fisher"),
        ("concept_trak/audit/plan.py", "import ray", "concept_trak.audit.plan -> ray"),
        ("cluster/queue.py", "import concept_trak.config", "cluster.queue"),
        ("concept_trak/config.py", "import jobs.configure", "concept_trak.config"),
        ("concept_trak/attribution/fisher.py", "import pyarrow", "concept_trak.attribution.fisher -> pyarrow"),
    ],
)
def test_a_broken_layer_fails(tmp_path, file, line, broken):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / file, "a") as source:
        source.write(f"{line}\n")
    checked = lint(tmp_path)
    assert checked.returncode == 1, checked.stdout
    assert broken in checked.stdout.replace("is not allowed to import", "->"), checked.stdout
