"""Every distribution that the project needs, and all that those need, is pinned in infra/constraints.txt."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions

import pytest
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


def imported(package: str) -> set[str]:
    """The top-level modules that the code of a package imports anywhere."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / package).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    absolute = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {name.partition(".")[0] for name in absolute + plain}


@pytest.mark.parametrize(
    ("package", "extras"), [("concept_trak", ["benchmark"]), ("cluster", ["jobs"]), ("jobs", ["jobs"])]
)
def test_what_is_imported_is_declared(package, extras):
    """A module that only comes with another distribution is gone the day that one no longer needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    names = {re.sub(r"[-_.]+", "-", Requirement(r).name.lower()) for r in declared}
    ours, providers = {"concept_trak", "cluster", "jobs"}, packages_distributions()
    foreign = imported(package) - ours - set(sys.stdlib_module_names)
    assert len(foreign) > 1, "the walk over the code finds too little"
    undeclared = {name for name in foreign if not names & {re.sub(r"[-_.]+", "-", d.lower()) for d in providers[name]}}
    assert not undeclared, f"declare what brings {undeclared}"


def test_nothing_is_pinned_twice():
    lines = [line for line in (ROOT / "infra/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(PINNED) == len(lines)
