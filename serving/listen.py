"""Answer questions to a finished audit on a page and over HTTP: `python -m jobs.serve store=results audit=demo`.

One process keeps the model and answers one question after another, as `jobs.ask` does. Ctrl-C ends it.
"""

import logging
import os
import socket
from dataclasses import dataclass, field

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
    model: MovedModel = field(default_factory=MovedModel)
    keep: KeepingBudget = field(default_factory=lambda: KeepingBudget(memory=KEPT))
    """What the features may take on this machine between questions."""

    def __post_init__(self) -> None:
        for name, least, most in (("port", 0, 65535), ("queue", 1, 100_000), ("most_bytes", 1000, 1_000_000_000)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}; expected {least} to {most}")


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
        app = application(_answering(config), token, config.most_bytes)
        web.run_app(app, sock=sock, print=lambda _: print(f"listening  {_url(sock)}", flush=True), access_log=None)
    return 0


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address is not this machine's, or another program has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
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


def _answering(config: ServeConfig) -> Answering:
    store = absolute(config.store)
    results = open_audit(store, config.audit)
    questions = Questions(results, config.model, keep=config.keep)
    questions.load()
    folder = absolute(config.questions) if config.questions else f"{store.rstrip('/')}/questions"
    return Answering(questions, QuestionArchive(folder, results), config.queue)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
