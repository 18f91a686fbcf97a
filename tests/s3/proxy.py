"""What lies between a client and its storage: a proxy on 127.0.0.1 that fails on purpose.

All faults of these tests are injected here, on the wire, so that the code under test has no hook for them.
"""

import http.client
import random
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from s3fs import S3FileSystem

from tests.s3.server import Server

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# Headers of one connection, which a proxy answers for itself.
OWN = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length"}
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing resets the connection


@dataclass
class Trap:
    """Springs at the `left`-th PUT from now whose path `pattern` is found in."""

    pattern: str
    left: int
    before: Callable[[], object] | None
    after: Callable[[], object] | None
    fault: str


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`, a port of this machine; `seen` and `faults` count what it did, by kind.

    `read` counts the bytes that were read of each path.

    Faults: `slow_down` answers 503 and passes nothing on; `reset` closes the connection before anything is passed on,
    `lost` after all of it was; `half` passes on half of the body and then closes both connections.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.target, self.url = target, f"http://127.0.0.1:{self.server_port}"
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.mistakes: list[BaseException] = []
        self._lock, self._random, self._share = threading.Lock(), random.Random(0), 0.0
        self.traps: list[Trap] = []  # those that wait to spring

    def trouble(self, share: float, seed: int) -> None:
        """From now on, this share of all requests meets a fault: half of them 503, the rest a reset, early or late."""
        with self._lock:
            self._share, self._random = share, random.Random(seed)

    def at_put(
        self,
        pattern: str,
        nth: int = 1,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
        fault: str = "",
    ) -> None:
        """At the nth PUT from now of a matching path: call `before`, let it through or fail, call `after`."""
        with self._lock:
            self.traps.append(Trap(pattern, nth, before, after, fault))

    def plan(self, method: str, path: str) -> Trap:
        """What happens to one request."""
        with self._lock:
            self.seen[method] += 1
            trap = self._sprung(path) if method == "PUT" else None
            if trap is None:
                trap = Trap(path, 0, None, None, self._drawn())
            if trap.fault:
                self.faults[trap.fault] += 1
            return trap

    def count(self, path: str, size: int) -> None:
        """Take down what was read of a path."""
        with self._lock:
            self.read[path] += size

    def _sprung(self, path: str) -> Trap | None:
        for trap in [trap for trap in self.traps if re.search(trap.pattern, path)]:
            trap.left -= 1
            if trap.left == 0:
                self.traps.remove(trap)
                return trap
        return None

    def _drawn(self) -> str:
        drawn = self._random.random()
        if drawn >= self._share:
            return ""
        return "slow_down" if drawn < self._share / 2 else "reset" if drawn < self._share * 3 / 4 else "lost"

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without the orderly goodbye of the base class, which would hide a reset

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):  # a client that has gone is none of our faults
            self.mistakes.append(error)


class Relay(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]  (the only server that makes it)

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        plan = self.server.plan(self.command, self.path)
        if plan.before is not None:
            plan.before()
        if plan.fault == "slow_down":
            self._answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
        elif plan.fault == "reset":
            self._abort()
        elif plan.fault == "half":
            self._send(body[: len(body) // 2], len(body)).close()
            self._abort()
        else:
            self._pass_on(body, lost=plan.fault == "lost")
        if plan.after is not None:
            plan.after()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def _pass_on(self, body: bytes, lost: bool) -> None:
        try:
            upstream = self._send(body, len(body))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if self.command == "GET":
                self.server.count(self.path.partition("?")[0], len(content))
        except (OSError, http.client.HTTPException):
            self._abort()  # the server is down: so are we
            return
        if lost:
            self._abort()
        else:
            self._answer(answer.status, answer.getheaders(), content, answer.getheader("Content-Length"))

    def _send(self, body: bytes, length: int) -> http.client.HTTPConnection:
        """The request as it came (its signature covers path and headers), with as much of the body as given."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in OWN:
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(length))
        upstream.putheader("Connection", "close")
        upstream.endheaders(body)
        return upstream

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", length if length and self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _abort(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        self.close_connection = True


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, through which every client made during the test goes."""
    proxy = Proxy(server.port)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    S3FileSystem.clear_instance_cache()  # what reads the data is cached with the endpoint it was made for
    yield proxy
    S3FileSystem.clear_instance_cache()
    proxy.shutdown()
    proxy.server_close()
    assert not proxy.mistakes, f"the proxy itself failed: {proxy.mistakes}"
