"""The settings of a server, its address and its token, and the server of one process."""

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from aiohttp import web

from concept_trak import UserError
from concept_trak.audit.finished_audit import open_audit
from concept_trak.audit.kept_features import KeepingBudget
from concept_trak.audit.questions import MovedModel, Questions
from concept_trak.config import absolute
from serving.answering import Answering
from serving.application import application
from serving.archive import QuestionArchive
from serving.guard import is_loopback

TOKEN = "CONCEPT_TRAK_TOKEN"
"""The environment variable with the token: a setting would be visible to everybody in the list of processes."""
SHORTEST_TOKEN = 16
KEPT = 2_000_000_000
"""Bytes of features in memory, by default."""
BACKLOG = 4096
"""Connections that may wait until they are accepted; Linux allows at most net.core.somaxconn. It drops the handshakes
of others, so that their clients try again for many seconds, or find their connection reset."""


@dataclass(frozen=True)
class ServeCluster:
    """Where the processes run if there are replicas."""

    kind: str = "local"
    """local (Ray on this machine) or ray (a running cluster)."""
    address: str = "auto"
    """ray: the cluster's address."""
    cpus: float = 1.0
    """Cores, and torch threads, of a process."""
    gpus: float = 0.0
    """GPUs of the process with the model; fractions are allowed."""
    memory: int = 0
    """Bytes that Ray reserves for a process; 0 reserves none."""
    shared_store: bool = False
    """ray: whether a `file` store is one folder that every node sees."""

    def __post_init__(self) -> None:
        if self.gpus > 1:
            raise UserError(
                f"cluster.gpus={self.gpus:g}; expected at most 1: a server's model is not divided among GPUs"
            )
        if min(self.cpus, self.gpus, self.memory) < 0 or not self.cpus:
            raise UserError(
                f"cluster.cpus={self.cpus} cluster.gpus={self.gpus} cluster.memory={self.memory}; expected some cores, "
                "and nothing below 0"
            )


@dataclass(frozen=True)
class ServeConfig:
    """A server that answers questions to a finished audit."""

    store: str = "results"
    """The folder or object-store URL of the audit."""
    audit: str = ""
    """The name of the audit, which must be finished."""
    host: str = "127.0.0.1"
    """The address that the server listens on. Others than loopback need a token in the variable CONCEPT_TRAK_TOKEN."""
    port: int = 8000
    """The port; 0 takes one that is free."""
    questions: str = ""
    """A folder or URL for questions and answers; empty is the folder `questions` of the store."""
    queue: int = 32
    """Number of questions that may wait. More are refused with 429."""
    most_bytes: int = 10_000_000
    """Size of a request, and so of a picture."""
    replicas: int = 0
    """Number of processes on Ray Serve that scan a share of the features each; 0 answers in one process without Ray."""
    model: MovedModel = field(default_factory=MovedModel)
    keep: KeepingBudget = field(default_factory=lambda: KeepingBudget(memory=KEPT))
    """What the features may take between questions: on this machine, or with replicas in each of them."""
    cluster: ServeCluster = field(default_factory=ServeCluster)

    def __post_init__(self) -> None:
        ranges = {"port": (0, 65535), "queue": (1, 100_000), "most_bytes": (1000, 1_000_000_000), "replicas": (0, 1000)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}; expected {least} to {most}")
        if self.replicas and self.cluster.kind not in ("local", "ray"):
            raise UserError(f"cluster.kind={self.cluster.kind!r}; expected one of: local, ray")


def listen(config: ServeConfig) -> int:
    """Answer questions until the process is interrupted or terminated.

    Raises:
        UserError: something about the audit, its model, the address or the token is wrong.
        Damaged: a file of the audit is not as it was written.
    """
    if not config.audit:
        raise UserError("which audit is asked? audit=AUDIT; `python -m jobs.status` lists them")
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with bound(config.host, config.port) as sock:
        token = own_token(sock.getsockname()[0])
        store = absolute(config.store)
        questions = Questions(open_audit(store, config.audit), config.model, keep=config.keep)
        questions.load()
        app = served(replace(config, store=store), questions, token)
        run(app, sock, lambda: print(f"listening  {_url(sock)}", flush=True))
    return 0


def run(app: web.Application, sock: socket.socket, begin: Callable[[], None]) -> None:
    """Answer the requests of a socket until the process is interrupted or terminated.

    Args:
        app: what answers.
        sock: from `bound`.
        begin: is called once requests are answered.
    """
    web.run_app(app, sock=sock, print=lambda _: begin(), access_log=None, backlog=BACKLOG)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address is not this machine's, or another program has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host={host} port={port} cannot be listened on ({error}); give an address of this machine, and a port "
            "that no program has"
        ) from None


def own_token(address: str) -> str:
    """The token of this process's environment; it may be empty on loopback.

    Raises:
        UserError: it is missing or short.
    """
    token = os.environ.get(TOKEN, "")
    if not token and is_loopback(address):
        return ""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        why = f"has {len(token)} characters" if token else "is not set, and other machines can reach this address"
        raise UserError(
            f"{TOKEN} {why}; expected at least {SHORTEST_TOKEN} ASCII characters, such as the output of "
            "`openssl rand -hex 16`. host=127.0.0.1 needs none"
        )
    return token


def served(config: ServeConfig, questions: Questions, token: str) -> web.Application:
    """The application that answers questions to an audit.

    Args:
        config: the settings, with an absolute store.
        questions: the audit.
        token: what requests must have; empty on loopback.
    """
    folder = absolute(config.questions) if config.questions else f"{config.store.rstrip('/')}/questions"
    answering = Answering(questions, QuestionArchive(folder, questions.results), config.queue)
    return application(answering, token, config.most_bytes)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
