"""Storage that fails under status, verify and gc: one message with the remedy, exit 4, and no traceback or secret."""

from collections.abc import Callable

import pytest

from jobs.execute import ClusterConfig, RunConfig
from jobs.exit_codes import ended
from jobs.gc import GcConfig, gc
from jobs.status import StatusConfig, status
from jobs.verify import VerifyConfig, verify
from tests.jobs_ops.audited import Audited, unfinish, unreadable
from tests.jobs_ops.test_gc_job import age

SERIAL = RunConfig(ClusterConfig(kind="serial"))
SECRET = "hidden/secret+key"
VERBS: dict[str, Callable[[str], int]] = {
    "status": lambda store: status(StatusConfig(store=store)),
    "verify": lambda store: verify(VerifyConfig(store=store)),
    "verify, repairing": lambda store: verify(VerifyConfig(store, repair=True), SERIAL),
    "gc": lambda store: gc(GcConfig(store=store)),
    "gc, deleting": lambda store: gc(GcConfig(store=store, delete=True, grace_hours=0)),
}


def require_one_message(said: str, *words: str) -> None:
    assert said.startswith("error: ")
    assert said.count("\n") == 1, "one message in one line"
    assert said.endswith("what is done stays done. Run the same command again.\n"), "the remedy is missing"
    assert all(word in said for word in words)
    assert "Traceback" not in said
    assert SECRET not in said


@pytest.mark.parametrize("verb", VERBS)
def test_no_storage_answers(verb: str, monkeypatch, capsys):
    settings = {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": SECRET}
    for name, value in {**settings, "MAX_ATTEMPTS": "1", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    assert ended(lambda: VERBS[verb]("s3://bucket/store")) == 4
    out, err = capsys.readouterr()
    assert out == ""
    require_one_message(err, "could not list s3://bucket/store/", "127.0.0.1:9")


@pytest.mark.parametrize("verb", ["verify", "verify, repairing"])
def test_a_file_that_the_disk_does_not_give_back_under_verify(audited: Audited, capsys, verb: str):
    part = audited.parts()[0]
    unreadable(part)
    assert ended(lambda: VERBS[verb](str(audited.store))) == 4
    require_one_message(capsys.readouterr().err, "Input/output error", str(part))
    assert part.is_symlink(), "what cannot be read was taken for damaged, and deleted"


@pytest.mark.parametrize("verb", ["gc", "gc, deleting"])
def test_a_file_that_the_disk_does_not_give_back_under_gc(audited: Audited, capsys, verb: str):
    unfinish(audited, "demo")
    unreadable(audited.store / "audits/demo/audit.yaml")
    age(audited.store / "features")
    before = audited.written()
    assert ended(lambda: VERBS[verb](str(audited.store))) == 4
    require_one_message(capsys.readouterr().err, "Input/output error", "audits/demo/audit.yaml")
    assert audited.written() == before, "gc deleted though it could not know what is needed"


def test_a_file_that_the_disk_does_not_give_back_under_status(audited: Audited, capsys):
    unreadable(audited.store / "audits/older/manifest.json")
    assert ended(lambda: VERBS["status"](str(audited.store))) == 4
    out, err = capsys.readouterr()
    require_one_message(err, "Input/output error", "audits/older/manifest.json")
    assert out.startswith("demo: finished"), "what can be told is told"
