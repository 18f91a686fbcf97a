"""Every distribution that the project needs, and all that those need, is pinned in infra/constraints.txt."""

import re
import tomllib
from importlib.metadata import distribution

from packaging.markers import default_environment
from packaging.requirements import Requirement

from tests.infra.manifests import ROOT

PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "infra/constraints.txt").read_text(), re.M))
PINNED = {name.lower().replace("_", "-"): version for name, version in PINS.items()}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(r) for rs in (project["dependencies"], *project["optional-dependencies"].values()) for r in rs]


def needed() -> dict[str, str]:
    """The installed version of everything needed, by its normal name, as the installed packages declare it."""
    found, seen = {}, set()
    todo = [(r, extra) for r in declared() for extra in ("", *r.extras)]
    while todo:
        requirement, extra = todo.pop()
        name = requirement.name.lower().replace("_", "-").replace(".", "-")
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        installed = distribution(name)  # pip installed what this system needs, so it is there
        found[name] = installed.version
        environment = {**default_environment(), "extra": extra}
        for line in installed.requires or []:
            inner = Requirement(line)
            # What a build of torch brings for its own devices is the build's choice: nothing with the CPU's.
            if name == "torch" and inner.name.startswith(("nvidia-", "cuda-", "triton")):
                continue
            if inner.marker is None or inner.marker.evaluate(environment):
                todo += [(inner, e) for e in ("", *inner.extras)]
    return found


def test_every_installed_dependency_is_pinned_at_its_version():
    found = needed()
    assert len(found) > 80, "the walk over the installed packages finds too little"
    different = {
        name: (version, PINNED.get(name)) for name, version in found.items()
        if PINNED.get(name) != version.partition("+")[0]
    }  # fmt: skip
    assert not different, f"(installed, pinned): {different}"


def test_every_declared_range_holds_the_pin():
    outside = [r.name for r in declared() if not r.specifier.contains(PINNED[r.name.lower().replace("_", "-")])]
    assert not outside


def test_nothing_is_pinned_twice():
    lines = [line for line in (ROOT / "infra/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(PINNED) == len(lines)
