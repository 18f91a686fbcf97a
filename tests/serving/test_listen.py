"""What a server needs before it listens: an address that is free, and off loopback a token."""

import asyncio
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web

from concept_trak import UserError
from serving.guard import is_this_machine
from serving.listen import BACKLOG, TOKEN, ServeCluster, ServeConfig, bound, listen, own_token, run

SYSTEM_BACKLOG = Path("/proc/sys/net/core/somaxconn")
CONNECTIONS = 200
"""More than the 128 that Python and aiohttp let wait, unless a server says otherwise."""


@pytest.mark.parametrize(
    ("token", "address", "message"),
    [
        ("", "0.0.0.0", "is not set, and other machines can reach this address"),
        ("", "192.0.2.1", "is not set"),
        ("short", "127.0.0.1", "has 5 characters"),
        ("é" * 16, "0.0.0.0", "expected at least 16 ASCII characters"),
        ("0123456789abcdef\n", "0.0.0.0", "expected at least 16 ASCII characters"),
    ],
)
def test_a_token_is_needed_off_loopback(monkeypatch, token, address, message):
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(UserError, match=message) as raised:
        own_token(address)
    assert not token.strip() or token not in str(raised.value)


def test_a_token_that_is_given_is_needed_on_loopback_too(monkeypatch):
    monkeypatch.setenv(TOKEN, "0123456789abcdef")
    assert own_token("127.0.0.1") == own_token("::1") == "0123456789abcdef"
    monkeypatch.delenv(TOKEN)
    assert own_token("127.0.0.1") == own_token("::1") == ""


def test_an_address_that_is_taken_or_elsewhere_is_named():
    with bound("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(UserError, match=f"host=127.0.0.1 port={port} cannot be listened on"):
            bound("127.0.0.1", port)
    with pytest.raises(UserError, match=r"host=192.0.2.1 port=0 cannot be listened on"):
        bound("192.0.2.1", 0)


@pytest.mark.parametrize(("key", "value"), [("port", 65536), ("queue", 0), ("most_bytes", 1)])
def test_settings_have_ranges(key, value):
    with pytest.raises(UserError, match=f"{key}={value}; expected"):
        ServeConfig(**{key: value})


def test_the_audit_is_named():
    with pytest.raises(UserError, match="which audit is asked"):
        listen(ServeConfig())


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.1:8000", True), ("127.1.2.3", True), ("[::1]:8000", True), ("LOCALHOST:1", True),
     ("", False), ("localhost.example", False), ("10.0.0.1:8000", False), ("[", False), ("a@localhost", False)],
)  # fmt: skip
def test_hosts_of_this_machine(host, own):
    assert is_this_machine(host) is own


def test_more_than_one_gpu_is_refused():
    """It would be reserved and stand idle."""
    with pytest.raises(UserError, match=r"cluster\.gpus=2; expected at most 1"):
        ServeCluster(gpus=2)
    assert ServeCluster(gpus=0.5).gpus == 0.5


@pytest.mark.skipif(
    not SYSTEM_BACKLOG.exists() or int(SYSTEM_BACKLOG.read_text()) < CONNECTIONS, reason="the system lets fewer wait"
)
def test_connections_wait_while_the_server_is_busy():
    """Linux drops handshakes that find no place in the queue."""
    assert BACKLOG >= CONNECTIONS
    busy, free, loops = threading.Event(), threading.Event(), list[asyncio.AbstractEventLoop]()

    async def hold(request: web.Request) -> web.Response:
        busy.set()
        assert free.wait(60), "the loop accepts nothing meanwhile"
        return web.Response()

    async def start(app: web.Application) -> None:
        loops.append(asyncio.get_running_loop())

    def exit_app() -> None:
        raise web.GracefulExit

    def talk(address: tuple[str, int]) -> list[bytes]:
        try:
            with ExitStack() as stack:
                connections = [stack.enter_context(socket.create_connection(address, 20))]
                connections[0].sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert busy.wait(20)
                for _ in range(CONNECTIONS):
                    connections.append(stack.enter_context(socket.create_connection(address, 5)))
                    connections[-1].sendall(b"GET / HTTP/1.0\r\n\r\n")
                free.set()
                for connection in connections:
                    connection.settimeout(20)
                return [connection.recv(12) for connection in connections]
        finally:
            free.set()
            loops[0].call_soon_threadsafe(exit_app)

    app = web.Application()
    app.add_routes([web.get("/", hold)])
    app.on_startup.append(start)
    with bound("127.0.0.1", 0) as sock, ThreadPoolExecutor(1) as pool:
        talking: list[Future[list[bytes]]] = []
        run(app, sock, lambda: talking.append(pool.submit(talk, sock.getsockname())))
    assert talking[0].result() == [b"HTTP/1.0 200"] * (CONNECTIONS + 1)
