"""Garbage collection keeps the questions to living audits, and removes those to audits that are gone."""

import time
from types import SimpleNamespace

import pytest

from concept_trak.report.maintenance import collect_garbage
from concept_trak.store.gc import Retention
from concept_trak.store.store import Store
from serving.archive import QuestionArchive
from serving.question import Question
from tests.serving.stand_in import RESULTS, Kept, answer, picture


def archive(folder, name: str) -> QuestionArchive:
    return Kept(f"{folder}/questions", SimpleNamespace(manifest=RESULTS.manifest, audit=SimpleNamespace(id=name)))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path) -> Store:
    """A store with questions to one audit that is there and to one that is not."""
    store = Store(str(tmp_path))
    store.create("audits/alive/progress.json", b"{}")
    store.create("questions/gone/notes.txt", b"of the user")
    for name in ("alive", "gone"):
        kept = archive(tmp_path, name)
        question = Question(examples=(kept.keep_picture(picture(), "white", 100),), method=("das",))
        key = kept.keep_question(question)
        kept.keep_answer(key, answer(question.concept(kept.pictures), question.method))
    return store


def test_questions_to_audits_that_are_gone_are_removed(store):
    before = store.names("questions")
    later = Retention(before=time.time() + 3600)
    listed = {item.name for item in collect_garbage(store, later)}
    assert listed == {name for name in before if name.startswith("questions/gone/") and "notes" not in name}
    assert len(listed) == 7, "a question, its table, layers and answer, a picture and two thumbnails"
    assert not list(collect_garbage(store, Retention(before=time.time() - 3600))), "young files stay"
    assert store.names("questions") == before, "listing deletes nothing"
    assert {item.name for item in collect_garbage(store, later, delete=True)} == listed
    assert set(store.names("questions")) == set(before) - listed


def test_questions_to_an_audit_that_begins_meanwhile_stay(store, monkeypatch):
    before, names = store.names("questions"), store.names

    def begin(folder: str) -> list[str]:
        if folder == "questions":
            store.create("audits/gone/progress.json", b"{}")
        return names(folder)

    monkeypatch.setattr(store, "names", begin)
    assert not list(collect_garbage(store, Retention(before=time.time() + 3600), delete=True))
    assert names("questions") == before
