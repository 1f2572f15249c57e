"""Optuna's own dashboard on the same database: its pages and its reading API, nothing that writes.

Its pages name absolute addresses (/dashboard, /api/studies, /static), so it answers beside ours instead of below a
prefix; /optuna leads there. What it may answer is listed; artifacts, language models and migrations are not.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from a2wsgi import WSGIMiddleware
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from automl.storage.sql import Database
from dashboards.guard import refusal_body

_ANSWERED = re.compile(
    r"/dashboard(/.*)?|/api/(meta|studies)|/api/studies/\d{1,9}(/param_importances|/plot/[a-z_]{1,40})?"
    r"|/static/[A-Za-z0-9_-]{1,60}(\.[A-Za-z0-9]{1,10}){1,3}|/favicon\.ico"
)
# Styles are made by its script while it runs. Without 'unsafe-eval' its WebGL plot (parallel coordinates) stays empty.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none';"
    " frame-ancestors 'none'"
)


class OptunaPages:
    """Answers for Optuna's dashboard what is listed, and passes everything else on to `otherwise`."""

    def __init__(self, database: Database, otherwise: ASGIApp) -> None:
        """database: opened read-only; ValueError if it is not."""
        from optuna_dashboard import wsgi

        if not database.read_only:
            raise ValueError("Optuna's dashboard is given a database that is only read")
        self._optuna: Any = WSGIMiddleware(wsgi(database.optuna_storage()), workers=4)
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_theirs = scope["type"] == "http" and _ANSWERED.fullmatch(scope["path"]) is not None
        if not is_theirs or scope["method"] not in ("GET", "HEAD"):
            await self._otherwise(scope, receive, send)
            return

        failed = False

        async def answer(message: Message) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                failed = failed or message["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR
                if failed:  # theirs is a page that holds parts of a traceback
                    await _one_line(scope, receive, send)
                MutableHeaders(scope=message)["content-security-policy"] = _POLICY
            if not failed:
                await send(message)

        headers = Headers(scope=scope)
        given = scope["headers"]
        if "accept-encoding" not in headers:  # optuna-dashboard 0.21 takes it for granted
            given = [*given, (b"accept-encoding", b"identity")]
        await self._optuna({**scope, "root_path": "", "headers": given}, receive, answer)


async def _one_line(scope: Scope, receive: Receive, send: Send) -> None:
    body, kind = refusal_body(scope["path"], 500, "Optuna's dashboard failed; the log of the server says more")
    await Response(body, status_code=500, media_type=kind.decode())(scope, receive, send)
