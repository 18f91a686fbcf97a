"""The deployments of a server on Ray Serve, as far as they need no cluster; tests/jobs/test_serve_on_ray.py has one."""

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from ray.exceptions import ActorDiedError
from starlette.requests import Request

from cluster.executor import Failure, Task, UserError
from cluster.worker import Reply, blueprint


@pytest.fixture(scope="module")
def on_serve() -> Any:
    """The module; Ray Serve warns of its own use of pydantic when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from cluster import on_serve
    return on_serve


class Handle:
    """As the handle of a deployment: each call raises or returns the next of some replies."""

    def __init__(self, *replies: Any) -> None:
        self.replies, self.tasks = list(replies), list[Any]()

    def remote(self, task: Any) -> Any:
        self.tasks.append(task)
        return self

    def result(self, timeout_s: float) -> Any:
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


@pytest.fixture
def pauses(on_serve, monkeypatch) -> list[float]:
    slept = list[float]()
    monkeypatch.setattr(on_serve.time, "sleep", slept.append)
    return slept


def test_a_task_whose_process_ends_is_sent_again(on_serve, pauses):
    handle = Handle(ActorDiedError(), ActorDiedError(), Reply(result=7))
    assert on_serve.send({"share-0": handle}, "share-0", "task").result == 7
    assert (handle.tasks, pauses) == (["task"] * 3, [0.0, 1.0, 2.0])


def test_processes_that_end_again_and_again_are_named(on_serve, pauses):
    handle = Handle(*[ActorDiedError() for _ in on_serve.PAUSES])
    reply = on_serve.send({"share-0": handle}, "share-0", "task")
    assert reply.failure is Failure.INFRASTRUCTURE
    assert reply.message == "share-0: ActorDiedError, 6 times"


def test_a_reply_with_a_failure_is_not_sent_again(on_serve, pauses):
    handle = Handle(Reply(failure=Failure.INPUT, message="no such file"))
    assert on_serve.send({"model": handle}, "model", "task").message == "no such file"


class Doubler:
    """A worker; some settings cannot be used."""

    def __init__(self, settings: int) -> None:
        if settings < 0:
            raise UserError(f"settings={settings}")
        if settings > 9:
            raise OSError("no storage")

    def __call__(self, task: int, attempt: object) -> int:
        return 2 * task


def test_a_replica_answers_and_reports_settings_that_it_cannot_use(on_serve):
    assert on_serve.Replica(*blueprint(Task(Doubler, 1)))(4).result == 8
    wrong = on_serve.Replica(*blueprint(Task(Doubler, -1)))
    for reply in (wrong.ready(), wrong(4)):
        assert (reply.failure, reply.message) == (Failure.INPUT, "settings=-1")
    with pytest.raises(RuntimeError, match="no storage"):
        on_serve.Replica(*blueprint(Task(Doubler, 10)))


def echo(settings: str) -> Any:
    """The worker of a front."""
    return lambda send, attempt: echo_application(settings, send)


def echo_application(settings: str, send: Any) -> web.Application:
    """An application that answers with the request."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        status, text = (201, send("a", body)) if body else (200, "")
        headers = {"X-Raw": request.raw_path, "X-Token": request.headers.get("Authorization", ""), "X-To": request.host}
        return web.Response(status=status, text=f"{settings} {text}", headers=headers | {"Location": "/elsewhere"})

    app = web.Application(client_max_size=100)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def ask(front: Any, method: str, path: str, body: bytes = b"") -> Any:
    """A request as Ray Serve brings it to the front."""
    raw, _, query = path.encode().partition(b"?")
    headers = [(b"host", b"localhost:1"), (b"authorization", b"Bearer x"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": method, "scheme": "http", "path": raw.decode(), "raw_path": raw,
             "query_string": query, "headers": headers, "server": ("127.0.0.1", 1), "root_path": ""}  # fmt: skip
    parts = [{"type": "http.request", "body": body[i : i + 40], "more_body": i + 40 < len(body)}
             for i in range(0, max(1, len(body)), 40)]  # fmt: skip

    async def receive() -> Any:
        return parts.pop(0)

    return await front(Request(scope, receive))


def test_the_front_passes_requests_and_answers_on_as_they_are(on_serve):
    async def talk() -> None:
        front = on_serve.Front.__new__(on_serve.Front)
        await front.__init__({"a": Handle("sent")}, *blueprint(Task(echo, "hello")))
        answer = await ask(front, "GET", "/samples/a%2Fb/thumbnail?x=%20y")
        assert (answer.status_code, answer.body) == (200, b"hello ")
        assert answer.headers["x-raw"] == "/samples/a%2Fb/thumbnail?x=%20y"
        assert (answer.headers["x-token"], answer.headers["x-to"]) == ("Bearer x", "localhost:1")
        assert answer.headers["location"] == "/elsewhere"
        answer = await ask(front, "POST", "/questions", b"word " * 19)
        assert (answer.status_code, answer.body) == (201, b"hello sent")
        assert (await ask(front, "POST", "/pictures", b"x" * 10_000)).status_code == 413
        await front._session.close()
        await front._runner.cleanup()
        front._folder.cleanup()

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_a_port_that_is_taken_is_named_before_ray_starts(on_serve):
    port = on_serve._free_port("127.0.0.1", 0)
    assert port > 0
    taken = f"host=127.0.0.1 port={port} cannot be listened on"
    with on_serve.socket.create_server(("127.0.0.1", port)), pytest.raises(UserError, match=taken):
        on_serve._free_port("127.0.0.1", port)


def test_each_process_has_a_deployment_with_its_resources(on_serve):
    process = SimpleNamespace(name="model", worker=Doubler, settings=1, cpus=2.0, gpus=1.0, memory=5)
    share = SimpleNamespace(name="share-0", worker=Doubler, settings=1, cpus=2.0, gpus=0, memory=0)
    front = SimpleNamespace(name="front", worker=echo, settings="hello", cpus=0, gpus=0, memory=0)
    plan = SimpleNamespace(processes=(process, share), front=front, host="127.0.0.1", port=1, address="auto")
    deployed = on_serve.deployments(plan)._bound_deployment
    assert (deployed.name, deployed.num_replicas, deployed.ray_actor_options["num_cpus"]) == ("front", 1, 0)
    options = {name: app._bound_deployment.ray_actor_options for name, app in deployed.init_args[0].items()}
    cores = {name: (own["num_cpus"], own.get("num_gpus")) for name, own in options.items()}
    assert cores == {"model": (2.0, 1.0), "share-0": (2.0, 0)}
    assert options["share-0"]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    assert options["share-0"]["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""
