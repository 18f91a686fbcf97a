"""What is known against the pinned dependencies: `make advisories` runs pip-audit over the locks.

Exit codes: 0 nothing is known against any of them; 1 something is, and is printed; 3 the advisories could not be
reached for all of them, which is not the same as safe.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCKS = (HERE / "locked.txt", HERE / "locked-cuda.txt")
ALL_CLEAR, KNOWN, UNCHECKED = 0, 1, 3


def report(lock: Path) -> dict[str, Any]:
    """What pip-audit finds, as its JSON; {} if it could not run."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "-r", str(lock), "-f", "json",
               "--progress-spinner", "off"]  # fmt: skip
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    return json.loads(output) if output.startswith("{") else {}


def verdict(name: str, found: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code for one lock, and its lines."""
    packages = found.get("dependencies", [])
    lines = [
        f"{name}: {p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version'}"
        for p in packages
        for v in p.get("vulns", [])
    ]
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    if lines:
        return KNOWN, lines
    if skipped or not packages:
        count = f"{len(skipped)} of {len(packages)} packages were not" if packages else "nothing was"
        return UNCHECKED, [f"{name}: the advisories cannot be reached from here: {count} checked"]
    return ALL_CLEAR, [f"{name}: nothing is known against {len(packages)} packages"]


def main() -> int:
    verdicts = [verdict(lock.name, report(lock)) for lock in LOCKS]
    print("\n".join(line for _, lines in verdicts for line in lines))
    codes = {code for code, _ in verdicts}
    return KNOWN if KNOWN in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
