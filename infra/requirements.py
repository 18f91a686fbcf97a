"""What a node needs installed, one requirement a line: `python infra/requirements.py jobs s3`, the extras by name.

Never the package itself: a job ships its code, and an installed copy could hide it.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
extras = [requirement for name in sys.argv[1:] for requirement in project["optional-dependencies"][name]]
print(*project["dependencies"], *extras, sep="\n")
