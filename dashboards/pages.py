"""The pages. Each is made on the server from one answer of `Views`; a script only fetches the changing part anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

import automl
from automl.report.html import content_policy
from automl.report.wording import configuration, counted, duration, moment, number, percent, score, signed
from automl.schedule.cron import zone_of
from dashboards import drawing
from dashboards.guard import HEALTH
from dashboards.views import Views

_EVERY_RUNNING, _EVERY_REST = 2, 5
"""Seconds between two looks of an open page, while something runs and otherwise."""
_PAGE = 50
_COMPARED = 6
_ORDERS = ("number", "best")
_STATES = ("RUNNING", "PARKED", "COMPLETE", "PRUNED", "FAIL", "WAITING")
_ASSETS: Mapping[str, str] = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# The report's scripts run in an origin of their own: they could not even read this application.
_REPORT_POLICY = "; frame-ancestors 'none'; sandbox allow-scripts allow-downloads allow-modals allow-popups"


class Pages:
    """The pages over one database. optuna: whether Optuna's dashboard is there to be linked to."""

    def __init__(self, views: Views, *, optuna: bool, can_submit: bool) -> None:
        self._views = views
        self._templates = _environment(optuna=optuna, can_submit=can_submit)

    def routes(self) -> list[Route]:
        """Where each page is."""
        study = "/studies/{study:path}"
        pages: list[tuple[str, Callable[[Request], Response]]] = [
            ("/", self.overview),
            ("/live", self.overview_live),
            ("/compare", self.compare),
            ("/doctor", self.doctor),
            (f"{study}/live", self.study_live),
            (f"{study}/trials", self.trials),
            (f"{study}/layers", self.layers),
            (f"{study}/report", self.report),
            (study, self.study),
            ("/schedules/{name:path}", self.schedule),
            ("/assets/{name}", self.asset),
            ("/optuna", self.optuna),
            (HEALTH, self.health),
        ]
        return [Route(path, endpoint) for path, endpoint in pages]

    def overview(self, request: Request) -> Response:
        """All studies, all schedules, and who works."""
        return self._page("overview.html", **self._overview(request))

    def overview_live(self, request: Request) -> Response:
        """The changing part of the overview."""
        return self._fragment(request, "overview_live.html", **self._overview(request))

    def study(self, request: Request) -> Response:
        """One study."""
        return self._page("study.html", **self._study(request))

    def study_live(self, request: Request) -> Response:
        """The changing part of a study's page."""
        return self._fragment(request, "study_live.html", **self._study(request))

    def trials(self, request: Request) -> Response:
        """All trials of a study, page by page."""
        name, asked = request.path_params["study"], request.query_params
        order = asked.get("order", "number")
        states = [state for state in asked.getlist("state") if state]
        if order not in _ORDERS or not set(states) <= set(_STATES):
            raise HTTPException(422, f"order is one of {', '.join(_ORDERS)}; state of {', '.join(_STATES)}")
        at = _page_number(request)
        offset = (at - 1) * _PAGE
        line, trials = self._views.trials(name, order=order, states=states, limit=_PAGE, offset=offset)
        total = sum(n for state, n in line.totals.counts.items() if not states or state in states)
        pages = max(1, -(-total // _PAGE))
        shown = {"order": order, "states": states, "page": at, "pages": pages, "total": total}
        return self._page("trials.html", line=line, trials=trials, all_states=_STATES, **shown)

    def layers(self, request: Request) -> Response:
        """Heat map of the importance of layers."""
        line = self._views.line(request.path_params["study"])
        shares = self._views.layers(line.study)
        return self._page("layers.html", line=line, map=drawing.heat_map(shares))

    def report(self, request: Request) -> Response:
        """The report of a study, as `automl report` writes it, under its own policy."""
        text = self._views.report(request.path_params["study"])
        return HTMLResponse(text, headers={"content-security-policy": content_policy() + _REPORT_POLICY})

    def compare(self, request: Request) -> Response:
        """Studies side by side."""
        chosen = list(dict.fromkeys(name for name in request.query_params.getlist("study") if name))[:_COMPARED]
        lines = [self._views.line(name) for name in chosen]
        known = list(dict.fromkeys([*chosen, *self._views.names()]))
        chart = drawing.comparison(lines, [self._views.progress(line.study) for line in lines])
        return self._page("compare.html", known=known, chosen=chosen, lines=lines, chart=chart, most=_COMPARED)

    def schedule(self, request: Request) -> Response:
        """The nights of a schedule."""
        line = self._views.schedule(request.path_params["name"])
        return self._page("schedule.html", line=line, chart=drawing.nights(line))

    def doctor(self, _request: Request) -> Response:
        """Invariants that do not hold."""
        return self._page("doctor.html", found=self._views.checkup(), service=self._views.service())

    def asset(self, request: Request) -> Response:
        """A style sheet or script of ours."""
        kind = _ASSETS.get(request.path_params["name"])
        if kind is None:
            raise HTTPException(404, "there is no such file")
        text = resources.files("dashboards").joinpath("assets", request.path_params["name"]).read_text("utf-8")
        return Response(text, media_type=kind, headers={"cache-control": "no-cache"})

    def optuna(self, _request: Request) -> Response:
        """Lead to Optuna's dashboard, whose addresses are fixed."""
        return RedirectResponse("/dashboard", status_code=307)

    def health(self, _request: Request) -> Response:
        """Tell those who watch this process that it lives."""
        return PlainTextResponse("ok\n")

    def _overview(self, request: Request) -> dict[str, Any]:
        at = _page_number(request)
        studies = self._views.studies(limit=_PAGE, offset=(at - 1) * _PAGE)
        is_busy = any(line.state == "running" for line in studies)
        total = self._views.count()
        return {
            "studies": studies,
            "total": total,
            "page": at,
            "pages": max(1, -(-total // _PAGE)),
            "schedules": self._views.schedules(),
            "service": self._views.service(),
            "every": _EVERY_RUNNING if is_busy else _EVERY_REST,
        }

    def _study(self, request: Request) -> dict[str, Any]:
        view = self._views.study(request.path_params["study"])
        return {
            "view": view,
            "line": view.line,
            "history": drawing.history(view),
            "curves": drawing.curves(view),
            "every": _EVERY_RUNNING if view.line.state == "running" else _EVERY_REST,
        }

    def _page(self, template: str, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(**values))

    def _fragment(self, request: Request, template: str, **values: Any) -> Response:
        body = self._templates.get_template(template).render(**values).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"etag": tag, "x-next-seconds": str(values["every"])}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(body, headers=headers)


def _page_number(request: Request) -> int:
    page = request.query_params.get("page", "1")
    if not page.isdecimal() or len(page) > 6:
        raise HTTPException(422, "page is a number from 1")
    return max(1, int(page))


def _environment(**known: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("dashboards"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=score,
        moment=moment,
        duration=duration,
        number=number,
        percent=percent,
        signed=signed,
        configuration=configuration,
        counted=counted,
        segment=lambda text: quote(str(text), safe=""),
        local=_local,
    )
    environment.globals.update(known | {"version": automl.__version__})
    return environment


def _local(when: datetime, zone: str) -> str:
    """Date and minute where the schedule's clocks are."""
    return f"{when.astimezone(zone_of(zone)):%Y-%m-%d %H:%M}"
