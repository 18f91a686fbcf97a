"""The house: short files, the field's words, one name for one thing. Imports are held by import-linter."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("concept_trak", "cluster", "serving", "jobs")
LONGEST, SHORT, SHORT_FILES = 300, 40, 10
LONGEST_VERB, LONGEST_JOBS = 60, 1500
PARTICIPLES = frozenset({
    "found", "said", "told", "asked", "made", "one", "known", "some", "given", "wanted", "kept", "noted", "taken",
    "placed", "held", "there",
})  # fmt: skip
METAPHORS = frozenset(
    [
        "casebook",
        "deposition",
        "hearing",
        "inquest",
        "inquiry",
        "trial",
        "evidence",
        "precedent",
        "claim",
        "gate",
        "rival",
        "contest",
        "entrants",
        "league",
        "standings",
        "room",
        "house",
        "place",
        "crew",
        "member",
        "reserve",
        "recruit",
        "dismiss",
        "arm",
    ]
)
"""Words of courts, of sports and of households, where the field has words of its own. `judge` is the benchmark's."""


def sources(*packages: str) -> dict[str, str]:
    files = [p for package in packages for p in (ROOT / package).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted(files)}


def bound_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable that a file binds: assignments, loops, arguments; not in comprehensions."""
    tree = ast.parse(source)
    comprehended = {id(name) for node in ast.walk(tree) if isinstance(node, ast.comprehension)
                    for name in ast.walk(node.target)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in comprehended:
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def public_definitions(source: str) -> Iterator[str]:
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name


def test_no_file_is_long():
    lengths = {name: len(text.splitlines()) for name, text in sources(*PACKAGES).items()}
    assert not (long := {name: n for name, n in lengths.items() if n > LONGEST}), f"split these by idea: {long}"


def test_few_files_are_stubs_of_an_idea():
    lengths = {name: len(text.splitlines()) for name, text in sources("concept_trak").items() if "__init__" not in name}
    short = {name: n for name, n in lengths.items() if n < SHORT}
    assert len(short) <= SHORT_FILES, f"merge some of these with what they belong to: {short}"


def test_verbs_parse_call_and_print():
    lengths = {name: len(text.splitlines()) for name, text in sources("jobs").items()}
    verbs = {name: lengths[name] for name, text in sources("jobs").items() if '__name__ == "__main__"' in text}
    assert len(verbs) > 10, "where are the verbs?"
    assert not (long := {name: n for name, n in verbs.items() if n > LONGEST_VERB}), f"move to the library: {long}"
    assert sum(lengths.values()) <= LONGEST_JOBS, f"move to the library: {lengths}"


@pytest.mark.parametrize(
    "package",
    [
        *sorted(f"concept_trak/{p.name}" for p in (ROOT / "concept_trak").iterdir() if p.is_dir() and p.name[0] != "_"),
        "serving",
    ],
)
def test_variables_are_nouns(package):
    wrong = [f"{name}:{line} {variable}" for name, text in sources(package).items()
             for line, variable in bound_names(text) if variable in PARTICIPLES]  # fmt: skip
    assert not wrong, f"name what these hold: {wrong}"


def test_files_and_public_names_are_the_fields_words():
    wrong = [name for name in sources(*PACKAGES) if METAPHORS & set(Path(name).stem.split("_"))]
    for name, text in sources(*PACKAGES).items():
        wrong += [f"{name}: {d}" for d in public_definitions(text) if METAPHORS & set(words(d))]
    assert not wrong, f"these have a word of another field: {wrong}"


def words(name: str) -> list[str]:
    """`ActorPool`, `actor_pool` -> actor, pool."""
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in name)
    return spaced.replace("_", " ").split()


def test_one_name_means_one_thing():
    """No two public classes or functions of the library have one name. A model family's `denoiser` is an interface."""
    homes = defaultdict(list)
    for name, text in sources("concept_trak").items():
        for definition in public_definitions(text):
            homes[definition].append(name)
    twice = {d: where for d, where in homes.items() if len(where) > 1}
    assert not twice, f"rename all but one: {twice}"


def wide_dataclasses(files: dict[str, str], fields: int = 5) -> set[str]:
    """The dataclasses with so many fields, whose positions nobody remembers."""
    classes = [c for text in files.values() for c in ast.walk(ast.parse(text)) if isinstance(c, ast.ClassDef)]
    data = [c for c in classes if any("dataclass" in ast.unparse(d) for d in c.decorator_list)]
    return {c.name for c in data if sum(isinstance(s, ast.AnnAssign) for s in c.body) >= fields}


def positional_builds(source: str, classes: set[str]) -> Iterator[tuple[int, str]]:
    """(line, class) of every build with more than two positional arguments, or with an unpacked sequence."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func).split(".")[-1]) in classes:
            unpacked = any(isinstance(argument, ast.Starred) for argument in node.args)
            yield from [(node.lineno, name)] if unpacked or len(node.args) > 2 else []


def test_wide_dataclasses_are_built_with_keywords():
    files = sources(*PACKAGES)
    wide = wide_dataclasses(files)
    wrong = [f"{name}:{line} {c}" for name, text in files.items() for line, c in positional_builds(text, wide)]
    assert not wrong, f"a swapped field is a silent bug; name the fields: {wrong}"


def test_the_checks_can_fail():
    wide = wide_dataclasses({"": "@dataclass\nclass A:\n    a: int\n    b: int\n@dataclass\nclass B:\n    a: int"}, 2)
    assert wide == {"A"}
    assert [line for line, _ in positional_builds("A(1, 2, 3)\nA(1, 2)\nm.A(*x)\nB(1, 2, 3)", wide)] == [1, 3]
    assert list(bound_names("def f(one):\n    found = [made for made in one]")) == [(1, "one"), (2, "found")]
    assert list(public_definitions("class A: ...\ndef _b(): ...\ndef c(): ...")) == ["A", "c"]
    assert words("ActorPool") == words("actor_pool") == ["actor", "pool"]
