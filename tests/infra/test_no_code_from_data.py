"""No configuration, model or data file can make a process run code: nothing here unpickles, evaluates or imports by it.

The one pickle is Ray's way: records between a driver and its own workers, over a channel that a token guards.
"""

import ast
from collections.abc import Iterator

import pytest

from concept_trak import UserError
from concept_trak.config import AuditConfig
from jobs.configure import CONF
from tests.configured import configure
from tests.infra.manifests import ROOT

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "subprocess", "runpy", "code"}
CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "import_module",
        "read_pickle",
        "unsafe_load",
        "full_load",
        "full_load_all",
    ),
    *("system", "popen", "instantiate", "get_class", "get_method", "get_object"),
}
# (file, what): why it is none of that.
KNOWN = {
    ("cluster/worker.py", "import pickle"): "the driver's own configuration, opened once the sources were compared",
    ("cluster/executor.py", "import_module()"): "the class of a Task, which the code names and no configuration",
    ("infra/advisories.py", "import subprocess"): "pip-audit, over the locks of this project",
    ("concept_trak/__init__.py", "import_module()"): "the homes of the public names, a table in the same file",
    ("concept_trak/models/__init__.py", "import_module()"): "the files of its own folder",
    ("concept_trak/data/format.py", "import_module()"): "the files of its own folder",
    ("concept_trak/data/benchmarks/emoji.py", "import subprocess"): "npm pack, of three packages with pinned digests",
}
FILES = [
    p for top in ("concept_trak", "cluster", "serving", "jobs", "infra") for p in sorted((ROOT / top).rglob("*.py"))
]


def found(source: str) -> Iterator[str]:
    """What a file does that could run code from data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _called(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    said = {k.arg: ast.unparse(k.value) for k in call.keywords}
    # `eval` of a network only switches it to inference, `compile` of `re` or torch reads no source.
    harmless = (last == "eval" and "." in name) or (last == "compile" and "." in name)
    if last in CALLS and not harmless:
        yield f"{last}()"
    if name in ("yaml.load", "yaml.load_all") and "Safe" not in said.get("Loader", ""):
        yield f"{name}()"
    if name == "torch.load" and said.get("weights_only") != "True":
        yield "torch.load()"
    if last in ("load", "memmap") and said.get("allow_pickle") == "True":
        yield f"{name}(allow_pickle=True)"
    if said.get("trust_remote_code", "False") != "False" or said.get("use_safetensors") == "False":
        yield f"{name}() of what a model brings"


def test_nothing_runs_code_from_data():
    assert len(FILES) > 80
    uses = {(p.relative_to(ROOT).as_posix(), what) for p in FILES for what in found(p.read_text())}
    assert uses == set(KNOWN), "either a use that needs a reason in KNOWN, or a reason that nothing needs any more"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from cloudpickle import loads", "eval(text)", "exec(text)", "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "torch.load(path)",
        "torch.load(path, weights_only=False)", "numpy.load(path, allow_pickle=True)", "importlib.import_module(name)",
        "os.system(name)", "hydra.utils.instantiate(config)", "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_each_way_is_seen(source):
    assert list(found(source))


@pytest.mark.parametrize("source", ["network.eval()", "re.compile(text)", "torch.load(p, weights_only=True)"])
def test_what_is_harmless_is_let_be(source):
    assert not list(found(source))


def test_the_workers_of_tasks_stand_in_the_code():
    """`cluster/executor.py` imports a worker by name, and it is that of a class in the code: no string makes one."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    workers = [call.args[0] for call in calls if ast.unparse(call.func) == "Task" and len(call.args) == 2]
    assert workers, "no task is made anywhere"
    assert all(isinstance(worker, (ast.Name, ast.Attribute)) for worker in workers), list(map(ast.unparse, workers))
    imports = [path.name for path in FILES if "imported(" in path.read_text() and path.parent.name != "tests"]
    assert set(imports) == {"executor.py", "worker.py"}, "somebody else imports by name"


@pytest.mark.parametrize("override", ["+model._target_=os.system", "+_target_=os.system", "+data.loader=pickle"])
def test_a_configuration_names_no_code(override):
    with pytest.raises(ValueError, match="unknown key"):
        configure(AuditConfig, "config", [override])


@pytest.mark.parametrize(
    "override",
    [
        "store=${oc.env:HOME}/x", "model.path=${store}", "model=${oc.env:HOME}", "audit=a-${oc.env:USER,none}",
        "concepts=[{name: a, prompt: 'a ${oc.env:HOME}', without_prompt: a}]", "store='${oc.env:HOME}'",
    ],
)  # fmt: skip
def test_a_configuration_cannot_read_the_environment_or_itself(override, monkeypatch):
    monkeypatch.setenv("HOME", "/hunter2")
    monkeypatch.setenv("USER", "hunter2")
    with pytest.raises(UserError, match="is an expression; give its value") as raised:
        configure(AuditConfig, "config", [override])
    assert "hunter2" not in str(raised.value)


def test_nor_can_one_that_lies_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("defaults: [schema, _self_]\nmodel:\n  path: ${oc.env:HOME}\n")
    monkeypatch.setattr("jobs.configure.CONF", tmp_path)
    with pytest.raises(UserError, match=r"^model\.path=.* is an expression"):
        configure(AuditConfig, "own", [])


def test_shipped_configuration_is_values_only():
    for path in CONF.rglob("*.yaml"):
        text = path.read_text()
        assert "_target_" not in text, path
        assert "!!" not in text, f"{path}: a YAML tag"
        assert "${" not in text, f"{path}: an interpolation can read the environment"
