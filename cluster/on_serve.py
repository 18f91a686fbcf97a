"""A server on Ray Serve: a deployment for each process of a plan, and one before them that takes the requests.

`serving/replicas.py` makes a plan: classes with their settings. The worker of the front is called once, with a function
that sends tasks to the other processes, and makes an aiohttp application.

Each deployment has one replica. Ray Serve starts it again when its process ends, and a task that its process did not
finish is sent again.
"""

import asyncio
import logging
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, UnixConnector, web

from cluster import local_ray
from cluster.executor import Attempt, Failure, Resources, Task, UserError
from cluster.on_ray import CHECK, OnRay  # before Ray, because it sets the variables that Ray reads when it is imported
from cluster.resources import actor_options, usable_cpus
from cluster.sealed import open_sealed
from cluster.worker import Reply, WorkerActor, blueprint, build_worker

# isort: split
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.requests import Request
from starlette.responses import Response
from yarl import URL

NAME = "concept-trak"
LOG = logging.getLogger(__name__)
PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds before a task is sent again whose process has ended."""
LEASE = 3600.0
"""Seconds that a task may take, with the start of its process."""
MOST_REQUESTS, MOST_WAITING = 256, 1024
"""Requests that the front handles at once, and that wait for it on a node; others are refused with 503."""
HOP = frozenset({"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "date"})
"""Headers that belong to one connection, and are not passed on."""


class Process(Protocol):
    """One process of a plan: its name, the class of its worker with its settings, and the resources it owns."""

    @property
    def name(self) -> str: ...
    @property
    def worker(self) -> Any: ...
    @property
    def settings(self) -> Any: ...
    @property
    def cpus(self) -> float: ...
    @property
    def gpus(self) -> float: ...
    @property
    def memory(self) -> int: ...


class Plan(Protocol):
    """The processes of a server, and where it listens. `address` is that of a running cluster; None starts Ray here."""

    @property
    def processes(self) -> Sequence[Process]: ...
    @property
    def front(self) -> Process: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def address(self) -> str | None: ...


class Replica:
    """A process of a plan. Its calls raise nothing and return a `Reply`."""

    def __init__(self, *arguments: Any) -> None:
        self._actor = WorkerActor()
        self._built = self._actor.build(*arguments)
        if self._built.failure not in (None, Failure.INPUT):
            raise RuntimeError(self._built.trace)  # Ray Serve starts another process

    def ready(self) -> Reply:
        """Return whether the worker could be built."""
        return self._built

    def __call__(self, task: Any) -> Reply:
        """One attempt at one task."""
        return self._built if self._built.failure else self._actor.work(task, Attempt(1, 0))


class Front:
    """The process that takes the requests. It runs an aiohttp application behind a socket in a folder of its own."""

    async def __init__(self, handles: Mapping[str, Any], *arguments: Any) -> None:  # type: ignore[misc]
        open_sealed()
        worker = await asyncio.to_thread(build_worker, *arguments)
        app = await asyncio.to_thread(worker, partial(send, handles), Attempt(1, 0))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        self._folder = tempfile.TemporaryDirectory(prefix="concept-trak-", ignore_cleanup_errors=True)
        path = f"{self._folder.name}/http"
        await web.UnixSite(self._runner, path).start()
        self._session = ClientSession(
            connector=UnixConnector(path, limit=0),
            timeout=ClientTimeout(total=None),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
        )

    async def __call__(self, request: Request) -> Response:
        """Pass a request on with its body as it comes, and return the answer."""
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP]
        body = None if request.method in ("GET", "HEAD") else request.stream()
        url = str(request.url.replace(scheme="http", netloc="front"))
        try:
            async with self._session.request(
                request.method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except ClientError:
            return Response("the request could not be read to its end\n", 400)
        response = Response(content, answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in HOP:
                response.headers.append(name, value)
        return response


def send(handles: Mapping[str, Any], name: str, task: Any) -> Reply:
    """Send a task to the process of a name, and wait for its reply. If the process ends, the next one gets the task."""
    message = ""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            return handles[name].remote(task).result(timeout_s=LEASE)
        except (RayError, RayServeException, TimeoutError) as error:
            message = f"{name}: {type(error).__name__}"
            LOG.warning("%s; its task is sent again", message)
    return Reply(failure=Failure.INFRASTRUCTURE, message=f"{message}, {len(PAUSES)} times")


def deployments(plan: Plan, env_vars: Mapping[str, str] | None = None) -> serve.Application:
    """The deployments of a plan, each with one replica.

    Args:
        plan: the processes.
        env_vars: set in every process.
    """
    local = usable_cpus() / len(plan.processes) if plan.address is None else float("inf")
    handles = {
        process.name: serve.deployment(
            name=process.name,
            num_replicas=1,
            max_ongoing_requests=1,
            ray_actor_options=_options(process, min(process.cpus, local), env_vars or {}),
        )(Replica).bind(*blueprint(Task(process.worker, process.settings)))
        for process in plan.processes
    }
    front = serve.deployment(
        name=plan.front.name,
        num_replicas=1,
        max_ongoing_requests=MOST_REQUESTS,
        max_queued_requests=MOST_WAITING,
        ray_actor_options=_options(plan.front, 0.0, env_vars or {}),
    )
    return front(Front).bind(handles, *blueprint(Task(plan.front.worker, plan.front.settings)))


def serve_until_ended(plan: Plan, working_dir: str, excludes: Sequence[str]) -> int:
    """Run a plan on Ray Serve until this process is interrupted or terminated.

    Args:
        plan: the processes.
        working_dir: the folder with the code, which a running cluster gets.
        excludes: what of it is not sent, in the syntax of .gitignore.

    Raises:
        UserError: a process cannot be built because of a setting, or the address cannot be listened on.
    """
    port = _free_port(plan.host, plan.port) if plan.address is None else plan.port
    OnRay(address=plan.address, working_dir=working_dir, excludes=excludes).connect()
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="HeadOnly", http_options={"host": plan.host, "port": port})
        env_vars = {"PYTHONPATH": working_dir} if plan.address is None else None
        serve.run(deployments(plan, env_vars), name=NAME, route_prefix="/")
        for process in plan.processes:
            reply = serve.get_deployment_handle(process.name, NAME).ready.remote().result()
            if reply.failure is not None:
                raise UserError(reply.message)
        host = f"[{plan.host}]" if ":" in plan.host else plan.host
        print(f"listening  http://{host}:{port}", flush=True)
        while True:
            time.sleep(CHECK)
            local_ray.require_alive()
    finally:
        with suppress(RayError, RayServeException):
            serve.delete(NAME)
        if plan.address is None:
            ray.shutdown()


def _options(process: Process, cpus: float, env_vars: Mapping[str, str]) -> dict[str, Any]:
    """The resources of a replica. It has as many threads as cores, also where it reserves a part of a core."""
    owned = Resources(max(process.cpus, 1e-3), process.gpus, process.memory)
    options = actor_options(owned, env_vars) | {"num_cpus": cpus}
    return {name: value for name, value in options.items() if name not in ("max_restarts", "max_task_retries")}


def _free_port(host: str, port: int) -> int:
    """The port, once it is known to be free; any free one for 0.

    Raises:
        UserError: the address is not this machine's, or another program has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as free:
            return free.getsockname()[1]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host={host} port={port} cannot be listened on ({error}); give an address of this machine, and a port "
            "that no program has"
        ) from None
