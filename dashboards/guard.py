"""What every request has to pass, and what every answer carries, whoever answers: our pages, the API, Optuna's pages.

Refused before anything else runs: hosts that are not ours (a web page that rebinds its name to 127.0.0.1), methods
other than GET, HEAD and POST, posts from other origins or as anything but JSON, bodies over 1 MB, and missing or wrong
tokens. Every refusal is one line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboards.access import Token, sent_token
from dashboards.errors import error_page

MOST_BYTES = 1_000_000
HEALTH = "/healthz"
API = "/api/v1/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_LONGEST_PATH = 2_000
_READING = ("GET", "HEAD")
_METHODS = (*_READING, "POST")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """hosts: names that a request may be for, without port. demands_token: also for reading."""

    hosts: frozenset[str]
    token: Token | None = None
    demands_token: bool = False


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _dressed(send, scope["path"])
        refusal = _refusal(scope, Headers(scope=scope), self._rules)
        if refusal is not None:
            await _refuse(scope, answer, refusal)
            return
        limited = _Limited(receive)
        try:
            await self._app(scope, limited, answer)
        except _TooLargeError:
            await _refuse(scope, answer, _too_large())


def _refusal(scope: Scope, headers: Headers, rules: Rules) -> Refusal | None:
    """The first reason against a request, None if there is none."""
    method, path = scope["method"], scope["path"]
    if host_of(headers.getlist("host")) not in rules.hosts:
        return Refusal(421, "this host name is not served here; start with --allow-host NAME to serve it")
    if method not in _METHODS:
        return Refusal(405, f"method {method[:20]} is not allowed", (("allow", ", ".join(_METHODS)),))
    if len(scope.get("raw_path") or path) > _LONGEST_PATH or any(ord(character) < 32 for character in path):
        return Refusal(400, "this address is too long or holds control characters")
    if _length(headers) > MOST_BYTES:
        return _too_large()
    return _unsafe(headers, method) or _unknown(headers, method, path, rules)


def _unsafe(headers: Headers, method: str) -> Refusal | None:
    """Reasons against a post that another web site made this browser send."""
    if method in _READING:
        return None
    origins, sites, kinds = (headers.getlist(name) for name in ("origin", "sec-fetch-site", "content-type"))
    if any(origin.partition("://")[2] != headers["host"] for origin in origins):
        return Refusal(403, "this request comes from another origin")
    if any(site not in ("same-origin", "none") for site in sites):
        return Refusal(403, "this request comes from another site")
    if [kind.partition(";")[0].strip().lower() for kind in kinds] != ["application/json"]:
        return Refusal(415, "send JSON, with Content-Type: application/json")
    return None


def _unknown(headers: Headers, method: str, path: str, rules: Rules) -> Refusal | None:
    """Reasons against somebody without the token. Reading without one is allowed where only this machine can."""
    given = headers.getlist("authorization")
    if method not in _READING and rules.token is None:
        return Refusal(403, "this dashboard is read-only; start it with --token-file FILE to let programs submit")
    if not given and ((method in _READING and not rules.demands_token) or path == HEALTH):
        return None
    # Basic is what browsers can ask a person for. They also send it unasked, so it never suffices for a change.
    sent = sent_token(given[0], password=method in _READING) if len(given) == 1 else None
    if rules.token is not None and sent is not None and rules.token.matches(sent):
        return None
    challenge = 'Basic realm="automl", charset="UTF-8"' if method in _READING else 'Bearer realm="automl"'
    return Refusal(401, "a token is needed: Authorization: Bearer TOKEN", (("www-authenticate", challenge),))


def host_of(given: list[str]) -> str:
    """The name in the one Host header, in lower case, without its port; "" if there is not exactly one."""
    if len(given) != 1:
        return ""
    name, colon, port = given[0].lower().rpartition(":")
    return name if colon and port.isdecimal() else given[0].lower()


def _length(headers: Headers) -> int:
    given = headers.get("content-length", "0")
    return int(given) if given.isdecimal() and len(given) < 20 else MOST_BYTES + 1


def _too_large() -> Refusal:
    return Refusal(413, f"this body is larger than {MOST_BYTES:,} bytes")


class _TooLargeError(HTTPException):
    """A body without a length, or with a wrong one, has grown beyond the limit.

    An HTTPException, because FastAPI takes any other error that reading a body raises for malformed JSON.
    """

    def __init__(self) -> None:
        super().__init__(*_too_large()[:2])


class _Limited:
    """Passes a body on until it is too large."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._seen = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > MOST_BYTES:
            raise _TooLargeError
        return message


def _dressed(send: Send, path: str) -> Send:
    """`send`, with the headers that every answer carries. A page may bring a content policy of its own."""

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("content-security-policy", POLICY)
            headers.setdefault("cache-control", "no-store")
            for revealing in ("server", "access-control-allow-origin"):
                del headers[revealing]
        await send(message)

    return answer


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    body, kind = refusal_body(scope["path"], refusal.status, refusal.reason)
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def refusal_body(path: str, status: int, reason: str) -> tuple[bytes, bytes]:
    """One line, as JSON under /api, as a page elsewhere; and its content type."""
    if path.startswith("/api/"):
        return json.dumps({"error": reason}).encode(), b"application/json"
    return error_page(status, reason).encode(), b"text/html; charset=utf-8"
