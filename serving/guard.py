"""Who may ask: the token, and the checks that keep pages of other sites away from a server on this machine.

A browser sends requests for any site that it shows, also to this machine. So without a token the request must name this
machine as its host (a foreign name that resolves to it is refused), and a request that changes something must come from
the server's own page.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

OPEN = "/health"
"""The path that needs no token, for the probes of a load balancer. It says only whether questions are answered."""
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "concept-trak",
}


async def set_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Set what every answer has; one that states nothing else is not cached."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")


def guard(token: str) -> Middleware:
    """The check that precedes every answer.

    Args:
        token: what a request must have; empty on loopback, where the host must be this machine.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != OPEN:
            if token and not is_authorized(request.headers.get("Authorization", ""), token):
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="concept-trak", Bearer'})
            if not token and not is_this_machine(request.host):
                return web.Response(status=403, text="this server answers to localhost alone\n")
            if request.method not in ("GET", "HEAD") and not is_same_origin(request):
                return web.Response(status=403, text="this server answers its own page, not those of other sites\n")
        return await handler(request)

    return check


def is_authorized(header: str, token: str) -> bool:
    """Whether an Authorization header has the token: as a bearer token, or as the password of Basic (for browsers)."""
    scheme, _, secret = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            secret = ""
    elif scheme.lower() != "bearer":
        secret = ""
    return hmac.compare_digest(_digest(secret), _digest(token))


def _digest(text: str) -> bytes:
    """Of one length, so that the comparison takes one time."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def is_this_machine(host: str) -> bool:
    """Whether a Host header names the loopback interface, with or without a port."""
    named = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::\d+)?", host.lower())
    name = (named[1] or named[2]) if named else ""
    return name == "localhost" or is_loopback(name)


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_same_origin(request: web.Request) -> bool:
    """Whether a browser sent the request from this server's page; programs send no Origin."""
    origin = request.headers.get("Origin")
    return origin is None or ("://" in origin and origin.partition("://")[2] == request.host)
