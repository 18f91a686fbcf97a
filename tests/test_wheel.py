"""The wheel in an environment without ray and hydra runs the README's Python and opens a finished audit."""

import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

from concept_trak.config import AuditConfig
from jobs.audit import AuditRunConfig, audit
from jobs.configure import configure_all
from jobs.shapes import ShapesConfig, shapes

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("ray", "hydra", "omegaconf", "antlr4", "concept_trak", "__editable__", "cluster", "jobs", "tests")
"""What the environment of the wheel does not have, as top-level names begin."""
WITHOUT = """
from importlib.util import find_spec

assert [name for name in ("ray", "hydra", "omegaconf", "cluster", "jobs", "tests") if find_spec(name)] == []
import concept_trak
assert concept_trak.__file__.startswith(__import__("sys").prefix), concept_trak.__file__
"""

IMAGES = """
from PIL import Image

from dataclasses import replace
from concept_trak.attribution.method import METHODS, RECOMMENDED

row = METHODS[RECOMMENDED]  # few states of the query are enough to see that it runs
METHODS[RECOMMENDED] = replace(row, query=replace(row.query, points=7, every=4))
captions = [f"a {colour} square" for colour in ("red", "green", "blue", "red")]
images = [Image.new("RGB", (32, 32), caption.split()[1]) for caption in captions]
"""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a new environment: the wheel, and links to the packages of this one except `ABSENT`."""
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "venv", with_pip=False)
    new, own = (Path(sysconfig.get_path("purelib", vars={"base": str(base)})) for base in (folder / "venv", sys.prefix))
    for package in own.iterdir():
        if not package.name.startswith(ABSENT) and package.suffix != ".pth":
            (new / package.name).symlink_to(package)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, cwd=folder)
    return python


def run(python: Path, folder: Path, code: str) -> str:
    """What code prints in that environment, in `folder`."""
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [python, "-c", WITHOUT + textwrap.dedent(code)],
        cwd=folder, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_lines_of_the_readme(python, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:1]
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    printed = run(python, tmp_path, textwrap.dedent(IMAGES) + code)
    assert printed.startswith("[('"), "the ids and scores of the top"


def test_a_finished_audit_opens(python, tmp_path):
    shapes(ShapesConfig(str(tmp_path / "shapes"), rows=8, files=1))
    arguments = ["--config-name", "demo", f"store={tmp_path}/store", f"data.uri={tmp_path}/shapes", "cluster=serial",
                 "method=trak", "top=3", "shown=1", "concepts=[{name: red, prompt: a red circle, without_prompt: a "
                 "circle, samples: 1}]", "methods.trak.train.times=[500]",
                 "methods.trak.query.times=[500]"]  # fmt: skip
    assert audit(*configure_all((AuditConfig, AuditRunConfig), "config", arguments)) == 0
    printed = run(python, tmp_path, f"""
        import concept_trak as ct
        print(ct.open_audit({str(tmp_path / "store")!r}, "demo").top("red").num_rows)
        """)  # fmt: skip
    assert int(printed) > 0
