"""What went wrong, as a page or as JSON of one line. A traceback goes to the log of the server only."""

from __future__ import annotations

import html
import logging
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from automl.errors import AutomlError, ConfigError, QueueFull, SubmissionRefused

logger = logging.getLogger(__name__)

_MOST_PROBLEMS = 20
_LONGEST = 2_000


def error_page(status: int, reason: str) -> str:
    """A page of one line."""
    phrase = HTTPStatus(status).phrase
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>'
        f"{phrase}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/assets/dashboard.css"></head>'
        f'<body><main><h1>{phrase}</h1><p>{html.escape(reason)}</p><p><a href="/">Overview</a></p></main></body></html>'
    )


def answer_error(request: Request, status: int, reason: str) -> Response:
    """The answer to a request that failed, in one line of bounded length whatever was sent."""
    reason = " ".join(reason.split())
    reason = reason if len(reason) <= _LONGEST else reason[:_LONGEST] + "…"
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": reason}, status_code=status)
    return HTMLResponse(error_page(status, reason), status_code=status)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what is not there, not allowed or not understood."""
    assert isinstance(error, HTTPException)
    response = answer_error(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def on_invalid(request: Request, error: Exception) -> Response:
    """A parameter or a body that is not as documented: all problems on one line."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    problems = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found[:_MOST_PROBLEMS]]
    more = [f"and {len(found) - _MOST_PROBLEMS} more"] if len(found) > _MOST_PROBLEMS else []
    return answer_error(request, 422, "; ".join([*problems, *more]))


async def on_our_error(request: Request, error: Exception) -> Response:
    """An error raised on purpose: its own line, which holds no secret."""
    assert isinstance(error, AutomlError)
    if isinstance(error, LookupError):
        return answer_error(request, 404, str(error))
    if isinstance(error, ConfigError):
        return answer_error(request, 422, "; ".join(str(error).splitlines()))
    if isinstance(error, SubmissionRefused):
        return answer_error(request, 429 if isinstance(error, QueueFull) else 409, str(error))
    logger.warning("%s %s: %s", request.method, request.url.path, error)
    return answer_error(request, 503, str(error))


async def on_unknown_error(request: Request, error: Exception) -> Response:
    """A mistake of ours: logged in full, told in one line."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer_error(request, 500, f"internal error ({type(error).__name__}); the log of the server says more")
