"""A server of several processes has the numbers of a server of one, and says what is wrong as one."""

import pickle
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import jobs.serve
from cluster.executor import Attempt, Failure
from cluster.worker import Reply, answer
from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.audit.finished_audit import open_audit
from concept_trak.audit.questions import Questions
from concept_trak.config import WorkerSettings
from jobs.configure import configure
from serving.listen import TOKEN, ServeCluster, ServeConfig
from serving.replicas import ReplicatedQuestions, ScanTask, ServePlan, result_of, serve_plan, shares
from tests.jobs.world import Found

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = (
    Concept("question", prompt="a red circle", without_prompt="a circle", samples=2),
    Concept("blue", prompt="a blue triangle", minus="blue", samples=2),
)


@dataclass(frozen=True)
class Part:
    """As a record of a part: its size alone."""

    bytes: int


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_part_is_in_one_share_and_shares_are_of_about_equal_size(count):
    parts: Any = [Part(size) for size in (90, 90, 10, 90, 1, 50, 90, 90, 30)]
    divided = shares(parts, count)
    assert [part for share in divided for part in share] == parts
    sizes = [sum(part.bytes for part in share) for share in divided]
    assert max(sizes) - min(sizes) <= 2 * 90
    assert shares([], count) == [[] for _ in range(count)]


def in_this_process(plan: ServePlan) -> Any:
    """Sends tasks to workers of this process, as bytes."""
    workers = {p.name: p.worker(pickle.loads(pickle.dumps(p.settings))) for p in plan.processes}

    def send(name: str, task: Any) -> Reply:
        reply = answer(partial(workers[name], pickle.loads(pickle.dumps(task)), Attempt(1, 0)))
        return pickle.loads(pickle.dumps(reply))

    return send


def config(done: Found, **fields: Any) -> ServeConfig:
    return ServeConfig(**{"store": str(done.store), "audit": done.audit, "replicas": 3, **fields})


@pytest.fixture(scope="module")
def plan(baseline) -> ServePlan:
    return serve_plan(config(baseline))


@pytest.fixture(scope="module")
def send(plan) -> Any:
    return in_this_process(plan)


def test_replicas_have_the_numbers_of_one_process(baseline, plan, send):
    """The bits of every column, and the histograms of all scores."""
    asked = ReplicatedQuestions(plan.front.settings, send).ask(CONCEPTS, top=7)
    one = Questions(
        open_audit(str(baseline.store), baseline.audit), worker=WorkerSettings(), keep=config(baseline).keep
    )
    alone = one.ask(CONCEPTS, top=7)
    assert asked.table.equals(alone.table)
    assert asked.results.tally.sample == alone.results.tally.sample
    assert all(len(scores) == 48 for scores in asked.results.tally.sample.values())
    assert {key: counts.tolist() for key, counts in asked.results.tally.histogram.items()} == {
        key: counts.tolist() for key, counts in alone.results.tally.histogram.items()
    }


def test_each_share_scans_its_own_parts_and_all_are_scanned(baseline, plan, send):
    asked = ReplicatedQuestions(plan.front.settings, send)
    columns = []
    score = asked.score
    asked.score = lambda method, queries, top: columns.append((method, tuple(queries))) or score(method, queries, top)  # type: ignore[method-assign]
    asked.ask(CONCEPTS[:1], top=48)
    (method, queries), *_ = columns
    samples = [
        {entry[1] for result in send(f"share-{i}", ScanTask(method, queries, 48)).result
         for entry in result.columns[queries[0].concept].top}
        for i in range(3)
    ]  # fmt: skip
    assert all(samples), "a share has no part"
    assert sum(map(len, samples)) == len(set().union(*samples)) == 48


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(Failure.INPUT, UserError), (Failure.INFRASTRUCTURE, OSError), (Failure.MEMORY, RuntimeError),
     (Failure.APPLICATION, RuntimeError)],
)  # fmt: skip
def test_a_failure_has_the_class_that_it_has_in_one_process(failure, kind):
    with pytest.raises(kind, match="why") as raised:
        result_of(Reply(failure=failure, message="why"))
    assert type(raised.value) is kind
    assert result_of(Reply(result=3)) == 3


def test_what_a_model_refuses_is_a_message(plan, send):
    asked = ReplicatedQuestions(plan.front.settings, send)
    with pytest.raises(UserError, match="no-such-file"):
        asked.ask([Concept("one", examples=("/no-such-file.png",))])


def test_an_audit_that_was_replaced_is_not_mixed_with_the_one_before(plan):
    process = plan.processes[1]
    with pytest.raises(UserError, match="was replaced by another one; start the server again"):
        process.worker(replace(process.settings, audit="another"))


def test_the_front_alone_has_the_token_and_it_is_not_printed(baseline, monkeypatch):
    monkeypatch.setenv(TOKEN, "0123456789abcdef")
    made = serve_plan({"store": str(baseline.store), "audit": baseline.audit, "replicas": 2, "host": "0.0.0.0"})
    assert made.front.settings.token == "0123456789abcdef"
    assert b"0123456789abcdef" not in b"".join(pickle.dumps(process.settings) for process in made.processes)
    assert "0123456789abcdef" not in repr(made)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": 0}, "replicas=0 is a server of one process"),
        ({"audit": ""}, "which audit is asked"),
        ({"audit": "nobody"}, "nobody"),
        ({"host": "0.0.0.0"}, "CONCEPT_TRAK_TOKEN is not set"),
        ({"store": "memory://here"}, "is the memory of one process"),
        ({"cluster": ServeCluster(kind="ray")}, "set cluster.shared_store=true"),
    ],
)
def test_what_is_wrong_is_a_message_before_anything_starts(baseline, monkeypatch, fields, message):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(UserError, match=message):
        serve_plan(config(baseline, **fields))


def test_replicas_and_their_cluster_are_settings():
    parsed = configure(ServeConfig, "serve", ["audit=a", "replicas=4", "cluster=ray", "cluster.gpus=1"])
    assert (parsed.replicas, parsed.cluster) == (4, ServeCluster(kind="ray", gpus=1.0))
    assert configure(ServeConfig, "serve", ["audit=a"]).replicas == 0
    for override, message in (("cluster=serial", "expected one of: local, ray"), ("cluster.cpus=0", "some cores")):
        with pytest.raises(UserError, match=message):
            configure(ServeConfig, "serve", ["audit=a", "replicas=4", override])


def test_without_replicas_no_ray_is_imported(monkeypatch):
    served = list[ServeConfig]()
    monkeypatch.setattr(jobs.serve, "listen", lambda config: served.append(config) or 0)
    monkeypatch.setitem(sys.modules, "cluster.on_serve", None)
    assert jobs.serve.serve(ServeConfig(audit="a")) == 0
    assert served == [ServeConfig(audit="a")]
