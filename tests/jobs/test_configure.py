"""From conf/ and the command line to dataclasses."""

import json
import shutil
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from concept_trak import UserError
from concept_trak.attribution.method import METHODS, PUBLISHED, RECOMMENDED
from concept_trak.audit.prepare import outcome_settings
from concept_trak.config import AuditConfig, build, plain_values
from concept_trak.store.identity import setting_differences
from jobs.configure import CONF
from tests.configured import configure

WHOLE = sorted(path.stem for path in CONF.glob("*.yaml"))
GROUPS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))


OF = {"study": "benchmark", "toy": "benchmark", "train_paper": "train", "train_toy": "train"}


def schema(name: str) -> type:
    """conf/<verb>.yaml is the verb's own, and `OF` says whose some others are; any other whole run is an audit."""
    name = OF.get(name, name)
    if not (CONF.parent / "jobs" / f"{name}.py").exists():
        return AuditConfig
    return getattr(import_module(f"jobs.{name}"), f"{name.title()}Config")


@pytest.mark.parametrize("name", WHOLE)
def test_every_whole_run_composes(name):
    config = configure(schema(name), name, [])
    assert build(schema(name), plain_values(config)) == config, "saved and read again it is another configuration"


@pytest.mark.parametrize("name", WHOLE)
def test_every_key_can_be_given_on_the_command_line(name):
    """Hydra takes `model=x` for a choice of conf/model, so a plain value of that name could never be set."""
    groups = {choice.partition("/")[0] for choice in GROUPS}
    plain = {f.name for f in fields(schema(name)) if not is_dataclass(f.type)}
    assert not groups & plain, "give these keys other names than the folders of conf/ have"


def test_a_mapping_comes_whole_from_the_command_line():
    variants = "variants={no_unit: {row: trak, unit: false}, late: {row: trak, train: {times: [900]}}}"
    config = configure(schema("benchmark"), "benchmark", ["method=[trak,fit_trak]", variants])
    assert config.variants == {
        "no_unit": {"row": "trak", "unit": False},
        "late": {"row": "trak", "train": {"times": [900]}},
    }
    with pytest.raises(ValueError, match="variants=3: input should be a valid dictionary"):
        configure(schema("benchmark"), "benchmark", ["variants=3"])
    with pytest.raises(ValueError, match=r"unknown key methods\.x\.train\.trajctory \(did you mean trajectory\?\)"):
        configure(AuditConfig, "config", ["methods={x: {train: {trajctory: forward_noise}}}"])


@pytest.mark.parametrize("choice", GROUPS)
def test_every_choice_of_a_group_composes(choice):
    group, _, name = choice.partition("/")
    chosen = plain_values(configure(AuditConfig, "config", [f"{group}={name}"]))
    assert chosen != plain_values(AuditConfig()), "the file changes nothing"


def test_methods_are_the_rows_of_the_table_and_no_others():
    assert not (CONF / "method").exists()
    for name, method in METHODS.items():
        assert configure(AuditConfig, "config", [f"method={name}"]).methods == {name: method}
    assert configure(AuditConfig, "config", ["method=recommended"]).methods == {RECOMMENDED: METHODS[RECOMMENDED]}
    assert list(configure(AuditConfig, "config", []).methods) == [PUBLISHED], "the default is as published"
    every = configure(AuditConfig, "config", [f"method=[{','.join(METHODS)}]"])
    assert every.methods == METHODS
    assert list(every.methods) == list(METHODS), "methods are shown in the order asked for"


def test_values_lists_and_files_come_from_the_command_line():
    config = configure(
        AuditConfig,
        "config",
        [
            "--config-name=demo",
            "damping=3",
            "method=trak",
            "methods.trak.train.times=[5,6]",
            "projector=mask",
            "projector.dim=7",
            "concepts=[{name: a, prompt: a red square, without_prompt: a square}, {name: b, labels: x}]",
            "data.label_columns=[shape]",
        ],
    )
    assert (config.audit, config.damping, config.data.label_columns) == ("demo", 3.0, ("shape",))
    assert (config.projector.kind, config.projector.dim) == ("mask", 7)
    assert config.methods["trak"].train.times == (5, 6)
    assert config.methods["trak"].query == METHODS["trak"].query
    assert [(c.name, c.text, c.without) for c in config.concepts] == [("a", "a red square", "a square"), ("b", "x", "")]
    assert configure(AuditConfig, "demo", []) == configure(AuditConfig, "config", ["-cn", "demo"])
    assert configure(AuditConfig, "config", ["data.uri='s3://b/year=2026'"]).data.uri == "s3://b/year=2026"


def test_concepts_come_from_a_file_as_from_the_command_line(tmp_path):
    concepts = "[{name: a, prompt: a red square, truth: {}}, {name: b, labels: 7}]"
    (tmp_path / "c.json").write_text(json.dumps(yaml.safe_load(concepts)))
    from_file = configure(AuditConfig, "demo", [f"concepts={tmp_path}/c.json"])
    assert from_file == configure(AuditConfig, "demo", [f"concepts={concepts}"])
    (tmp_path / "c.yaml").write_text("- {name: a, prompt: b, wihtout: '${oc.env:HOME}'}")
    with pytest.raises(UserError, match=r"concepts.0.wihtout=.* is an expression"):
        configure(AuditConfig, "demo", [f"concepts={tmp_path}/c.yaml"])


def test_the_demo_asks_for_what_is_in_the_repository():
    demo = configure(AuditConfig, "demo", [])
    assert list(demo.methods) == ["concept_trak", "fit_trak"]
    assert all(not Path(path).is_absolute() for path in (demo.model.path, demo.data.uri, demo.store))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("dampening=3", r"unknown key dampening \(did you mean damping\?\)"),
        ("modle.path=x", r"unknown key modle.path \(did you mean model.path\?\)"),
        ("projector.dims=5", r"unknown key projector.dims \(did you mean projector.dim\?\)"),
        ("+feature.kind=x", r"unknown key feature.kind; known: dtype, encoding"),
        ("damping=much", r"damping='much'; expected auto or a positive number, 1e-12 ... 1e12"),
        ("top=2.5", r"top=2.5: input should be a valid integer"),
        ("top=0", r"top=0; expected at least 1"),
        ("damping=0", r"damping=0.0; expected auto or a positive number"),
        ("model.precision=int8", r"model.precision='int8'; expected one of: float32, "),
        ("method=nope", r"method=nope is not known; expected one of: .*concept_trak, d_trak, das, .*trak"),
        ("method=[trak,nope]", r"method=nope is not known; expected one of: "),
        ("projector=scetch", r"projector=scetch is not known; expected one of: identity, kronecker, mask, rademacher"),
        ("methods.concept_trak.train.trajectory=up", r"trajectory='up' is not known; expected one of: forward_noise"),
        ("methods.concept_trak.over=tensor", r"over='tensor' is not known; expected one of: all, layer"),
        ("concepts=[{name: a, prompt: b, wihtout: c}]", r"concepts.0.wihtout \(did you mean without_prompt\?\)"),
        ("concepts=[{prompt: b}]", r"concepts.0.name is missing; give it a value"),
        ("concepts=[{name: a/b, prompt: b}]", r"concept 'a/b': name must be at most 100 letters"),
        ("concepts=[{name: a, prompt: b, without_prompt: b}]", r"'a': both conditions are 'b', so there is no dir"),
        ("concepts=[{name: a, prompt: b, scope: local}]", r"'a': scope=local needs image=<path>"),
        ("concepts=[{name: a, prompt: b}, {name: a, prompt: c}]", r"a is named twice"),
        ("concepts=[{name: a, prompt: b, truth: {hue: c}}]", r"'a': truth names hue, which data.label_columns"),
        ("concepts=[{name: a", r"concepts=\[{name: a cannot be read .*; quote special characters"),
        ("data.uri=/year=2026", r"data.uri=/year=2026 cannot be read .*; quote special characters"),
        ("--config=x", r"'--config=x' is not a setting; expected key=value, or --config-name NAME"),
        ("demo", r"'demo' is not a setting; expected key=value"),
        ("--config-name=nope", r"there is no configuration 'nope' in conf/; expected one of: .*demo, .*weekly"),
        ("--config-name=../conf/demo", r"there is no configuration '../conf/demo' in conf/"),
        ("--config-name=/etc/passwd", r"there is no configuration '/etc/passwd' in conf/"),
        ("model=null", r"with model=null cannot be read \(Config group override must be a string or a list"),
        (f"top={'9' * 5000}", r"cannot be read \(Exceeds the limit"),
        ("damping=1,2", r"damping=1,2: a key has several values; give it one, or a list: key=\[a, b\]"),
        ("damping=range(1,3)", r"a key has several values; give it one"),
    ],
)
def test_mistakes_are_one_message_with_the_remedy(argument, says):
    with pytest.raises(ValueError, match=says) as raised:
        configure(AuditConfig, "config", [argument])
    assert "\n" not in str(raised.value)


def test_numbers_are_texts_where_a_text_is_meant():
    """YAML and Hydra read 2026 as a number, and `labels: 2` is how people write a class."""
    digit = {"name": 5, "labels": 207, "without_labels": 3, "truth": {"digit": 5}}
    config = build(AuditConfig, {"audit": 2026, "data": {"label_columns": ["digit"]}, "concepts": [digit]})
    concept = config.concepts[0]
    assert (config.audit, concept.name, concept.labels, concept.truth) == ("2026", "5", "207", {"digit": "5"})
    assert configure(AuditConfig, "config", ["audit=2026"]).audit == "2026"
    with pytest.raises(UserError, match="scores=True: input should be a valid string"):
        build(AuditConfig, {"scores": True})


def test_concepts_as_json_are_told_how_a_mapping_is_written():
    with pytest.raises(UserError, match=r"cannot be read \(.*keys of a mapping have no quotes: concepts=\[\{name: red"):
        configure(AuditConfig, "config", ['concepts=[{"name": "red", "prompt": "a red square"}]'])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("audit: café\n".encode("latin-1"), r"can't decode byte 0xe9 .*; expected YAML in UTF-8"),
        ("audit: a\n".encode("utf-16"), r"can't decode byte 0xff"),
        (b"audit: a\naudit: b\n", r"found duplicate key audit .*and one value for each key"),
        (b"model:\n\tpath: x\n", r"found character '\\t' that cannot start any token"),
        (b"audit: !!python/object/apply:os.getcwd []\n", r"could not determine a constructor for the tag"),
        (b"defaults: [mine, _self_]\n", r"--config-name mine with no setting cannot be read \(maximum recursion"),
        (b"defaults: [nosuch, _self_]\n", r"In 'mine': Could not load 'nosuch'"),
        (b"- a\n- b\n", r"must be a DictConfig"),
    ],
    ids=range(8),
)
def test_a_configuration_that_cannot_be_read_is_one_message(tmp_path, monkeypatch, content, says):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/mine.yaml").write_bytes(content)
    monkeypatch.setattr("jobs.configure.CONF", tmp_path / "conf")
    with pytest.raises(UserError, match=says) as raised:
        configure(AuditConfig, "config", ["--config-name=mine"])
    assert "\n" not in str(raised.value)


def test_a_setting_that_was_added_is_unset_by_default():
    """Else an upgrade ends the audits that an earlier version began: `earlier_audit.yaml` is one of the demo."""
    settings = outcome_settings(plain_values(configure(AuditConfig, "demo", [])))
    earlier = yaml.safe_load((Path(__file__).parent / "earlier_audit.yaml").read_text())

    def one_sided(other: dict) -> list[str]:
        return [line for line in setting_differences(settings, other) if "nothing" in line]

    assert one_sided(earlier) == []
    assert one_sided({key: value for key, value in earlier.items() if key != "top"}) == ["top: 100 here, nothing there"]
