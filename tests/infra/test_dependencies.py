"""Every distribution that the project needs, and all that those need, is pinned in infra/constraints.txt."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from infra.advisories import verdict
from tests.infra.manifests import ROOT

PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "infra/constraints.txt").read_text(), re.M))
PINNED = {name.lower().replace("_", "-"): version for name, version in PINS.items()}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(r) for rs in (project["dependencies"], *project["optional-dependencies"].values()) for r in rs]


def needed(requirements: list[Requirement]) -> dict[str, str]:
    """The installed version of everything needed, by its normal name, as the installed packages declare it."""
    found, seen = {}, set()
    todo = [(r, extra) for r in requirements for extra in ("", *r.extras)]
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
    found = needed(declared())
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
    ("package", "extras"),
    [("concept_trak", ["benchmark"]), ("cluster", ["jobs"]), ("serving", ["jobs"]), ("jobs", ["jobs"])],
)
def test_what_is_imported_is_declared(package, extras):
    """A module that only comes with another distribution is gone the day that one no longer needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    names = {re.sub(r"[-_.]+", "-", Requirement(r).name.lower()) for r in declared}
    ours, providers = {"concept_trak", "cluster", "serving", "jobs"}, packages_distributions()
    foreign = imported(package) - ours - set(sys.stdlib_module_names)
    assert len(foreign) > 1, "the walk over the code finds too little"
    undeclared = {name for name in foreign if not names & {re.sub(r"[-_.]+", "-", d.lower()) for d in providers[name]}}
    assert not undeclared, f"declare what brings {undeclared}"


LOCKS = {name: (ROOT / "infra" / name).read_text() for name in ("locked.txt", "locked-cuda.txt")}
LOCKED = {name: dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)) for name, text in LOCKS.items()}


def test_the_locks_have_the_pinned_versions():
    """`make lock` writes them, from the constraints."""
    versions = {**LOCKED["locked.txt"], **LOCKED["locked-cuda.txt"]}
    different = {n: (v, PINNED[n]) for n, v in versions.items() if PINNED.get(n, v) != v}
    assert not different, f"(locked, pinned): {different}"
    unpinned = {name for name in LOCKED["locked.txt"] if name not in PINNED}
    assert all(f"\n{n}==" in LOCKS["locked.txt"] and ";" in re.search(rf"^{n}==.*", LOCKS["locked.txt"], re.M)[0]
               for n in unpinned), f"of this system and not pinned: {unpinned}"  # fmt: skip


def test_the_locks_have_everything_that_a_node_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [Requirement(r) for r in (*project["dependencies"], *extras["jobs"], *extras["s3"])]
    missing = needed(requirements).keys() - LOCKED["locked.txt"].keys()
    assert missing == {"torch"}
    assert "torch" in LOCKED["locked-cuda.txt"]
    assert not LOCKED["locked.txt"].keys() & LOCKED["locked-cuda.txt"].keys()


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_hashes(name):
    blocks = re.split(r"^(?=\S)", LOCKS[name], flags=re.M)[1:]
    assert len(blocks) == len(LOCKED[name]) > 10
    for block in blocks:
        head, *hashes = block.replace("\\\n", "\n").splitlines()
        assert hashes, f"{head} has no hash"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64} ?", line) for line in hashes), block


def package(**more):
    return {"name": "a", "version": "1", "vulns": [], **more}


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        ({"dependencies": [package()]}, 0, "l: nothing is known against 1 packages"),
        ({"dependencies": [package(vulns=[{"id": "CVE-1", "fix_versions": ["2"]}])]}, 1, "l: a 1: CVE-1, mended in 2"),
        ({"dependencies": [package(vulns=[{"id": "CVE-1", "fix_versions": []}])]}, 1,
         "l: a 1: CVE-1, mended in no version"),
        ({"dependencies": [package(), {"name": "b", "skip_reason": "not found"}]}, 3,
         "l: the advisories cannot be reached from here: 1 of 2 packages were not checked"),
        ({}, 3, "l: the advisories cannot be reached from here: nothing was checked"),
    ],
)  # fmt: skip
def test_packages_that_were_not_checked_are_not_called_safe(found, code, line):
    """pip-audit itself ends with 0 and "No known vulnerabilities found" where it could look up nothing."""
    assert verdict("l", found) == (code, [line])


def test_nothing_is_pinned_twice():
    lines = [line for line in (ROOT / "infra/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(PINNED) == len(lines)
