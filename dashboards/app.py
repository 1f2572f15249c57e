"""The application: pages, API and Optuna's dashboard behind one guard, over a database that is opened read-only."""

from __future__ import annotations

import importlib.util

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import automl
from automl.errors import AutomlError
from automl.storage.sql import Database
from dashboards.api import api
from dashboards.errors import on_http_error, on_invalid, on_our_error, on_unknown_error
from dashboards.guard import Guard, Rules
from dashboards.optuna_pages import OptunaPages
from dashboards.pages import Pages
from dashboards.views import Views

_DESCRIPTION = """Studies, schedules and submitted sweeps of one database. Reading is open to whoever may see the pages;
submitting and cancelling need the header `Authorization: Bearer TOKEN`. Errors are `{"error": "one line"}`."""


def build_app(
    database: Database, rules: Rules, *, writable: Database | None = None, views: Views | None = None
) -> ASGIApp:
    """Everything that is served. database: opened read-only; writable: where submissions go, only with a token.

    Raises ValueError if the database could be written to by a page, or by somebody without a token.
    """
    if not database.read_only or (writable is not None and rules.token is None):
        raise ValueError("pages are given a database that is only read, and a writable one only beside a token")
    views = views or Views(database)
    app = FastAPI(
        title="automl",
        version=automl.__version__,
        description=_DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    for kind, answer in (
        (HTTPException, on_http_error),
        (RequestValidationError, on_invalid),
        (AutomlError, on_our_error),
        (Exception, on_unknown_error),
    ):
        app.add_exception_handler(kind, answer)
    app.include_router(api(views, writable))
    with_optuna = importlib.util.find_spec("optuna_dashboard") is not None
    app.router.routes.extend(Pages(views, optuna=with_optuna, can_submit=writable is not None).routes())
    return Guard(OptunaPages(database, app) if with_optuna else app, rules)
