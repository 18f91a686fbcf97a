"""The wheel alone runs the README's Python and opens a finished audit: without ray, hydra, and this checkout."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from concept_trak.config import AuditConfig
from jobs.audit import AuditRunConfig, audit
from jobs.configure import configure_all
from jobs.shapes import ShapesConfig, shapes

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "hydra", "omegaconf", "cluster", "jobs", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
import concept_trak
assert "site" in concept_trak.__file__, concept_trak.__file__
"""

IMAGES = """
from PIL import Image

captions = [f"a {colour} square" for colour in ("red", "green", "blue", "red")]
images = [Image.new("RGB", (32, 32), caption.split()[1]) for caption in captions]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel, installed alone."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, cwd=folder)
    return folder / "site"


def run(site: Path, folder: Path, code: str) -> str:
    variables = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT + textwrap.dedent(code)],
        cwd=folder, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_lines_of_the_readme(site, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:1]
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    printed = run(site, tmp_path, textwrap.dedent(IMAGES) + code)
    assert printed.startswith("[('"), "the ids and scores of the top"


def test_a_finished_audit_opens(site, tmp_path):
    shapes(ShapesConfig(str(tmp_path / "shapes"), rows=8, files=1))
    arguments = ["--config-name", "demo", f"store={tmp_path}/store", f"data.uri={tmp_path}/shapes", "cluster=serial",
                 "method=trak", "top=3", "shown=1", "concepts=[{name: red, prompt: a red circle, without_prompt: a "
                 "circle, samples: 1}]", "methods.trak.train.times=[500]",
                 "methods.trak.query.times=[500]"]  # fmt: skip
    assert audit(*configure_all((AuditConfig, AuditRunConfig), "config", arguments)) == 0
    printed = run(site, tmp_path, f"""
        import concept_trak as ct
        print(ct.open_audit({str(tmp_path / "store")!r}, "demo").top("red").num_rows)
        """)  # fmt: skip
    assert int(printed) > 0
